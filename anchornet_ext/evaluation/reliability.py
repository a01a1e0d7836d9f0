"""Whether confidences can be taken at their word: of those of 80 %, are 80 % right?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .intervals import Estimate, share

NUM_BINS = 15


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy at one exit, in `bins` intervals of equal width.

    Attributes:
        exit_step: 1 to T.
        edges: (bins + 1,) from 0 to 1.
        count: (bins,) images in each.
        confidence: (bins,) their mean confidence, NaN where there are none.
        accuracy: (bins,) NaN where there are none.
        error: the expected calibration error: the distance of the two, averaged over the images.
        chance_error: the error that this many images would show on average if every confidence were
            exactly right.
        bias: mean confidence less accuracy; positive is too sure.
    """

    exit_step: int
    edges: NDArray[np.float64]
    count: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: Estimate
    error: float
    chance_error: float
    bias: float


def reliability(
    confidence: NDArray[np.float32],
    correct: NDArray[np.bool_],
    exit_step: int,
    bins: int = NUM_BINS,
) -> Reliability:
    """Bins the images of one exit by their confidence.

    Args:
        confidence: (N,) in [0, 1]; N at least 1.
        correct: (N,).
        exit_step: 1 to T, kept for the caption.

    Raises:
        ValueError: shapes that differ or are not (N,), N = 0, or a confidence out of range.
    """
    if confidence.ndim != 1 or confidence.shape != correct.shape or len(confidence) == 0:
        raise ValueError(
            f"confidence and correct must be (N,) with N >= 1, got {confidence.shape} and "
            f"{correct.shape}"
        )
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError("a confidence lies outside [0, 1]")
    values = confidence.astype(np.float64)
    place = np.minimum((values * bins).astype(np.int64), bins - 1)
    count = np.bincount(place, minlength=bins)
    total = np.bincount(place, weights=values, minlength=bins)
    hits = np.bincount(place, weights=correct.astype(np.float64), minlength=bins)
    # Of a bin's accuracy when each image is right with the probability it claims.
    variance = np.bincount(place, weights=values * (1 - values), minlength=bins)
    empty = np.full(bins, np.nan)
    mean, low, high = empty.copy(), empty.copy(), empty.copy()
    claimed = empty.copy()
    for index in np.flatnonzero(count):
        found = share(hits[index], int(count[index]))
        mean[index], low[index], high[index] = found.value, found.low, found.high
        claimed[index] = total[index] / count[index]
    number = len(values)
    return Reliability(
        exit_step=exit_step,
        edges=np.linspace(0, 1, bins + 1),
        count=count,
        confidence=claimed,
        accuracy=Estimate(mean, low, high),
        error=float(np.abs(total - hits).sum() / number),
        # The mean absolute value of a normal variable is sqrt(2/pi) standard deviations.
        chance_error=float(np.sqrt(2 / np.pi * variance).sum() / number),
        bias=float((total.sum() - hits.sum()) / number),
    )

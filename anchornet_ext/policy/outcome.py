"""What thresholds do to an exit table: who leaves where, how right and at what cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .exit_table import ExitTable


@dataclass(frozen=True, eq=False)
class Outcome:
    """A table under thresholds.

    Attributes:
        exit_index: (N,) intp, the exit where each image leaves, from 0.
        accuracy: share of images whose answer at their exit is right.
        cost: mean over the images, in the unit asked for.
        share: (T,) float64, share of images that leave at each exit.
        top5: share of images whose label is among the five most probable; None where unknown.
    """

    exit_index: NDArray[np.intp]
    accuracy: float
    cost: float
    share: NDArray[np.float64]
    top5: float | None = None


def apply_thresholds(confidence: NDArray[np.floating], thresholds: ArrayLike) -> NDArray[np.intp]:
    """The exit, from 0, where each image leaves: the first t with confidence > thresholds[t].

    This is what `inference` does, to the bit: the comparison is strict and in the precision of the
    confidences, to which a threshold is rounded first. So a threshold between two neighbouring
    float32 numbers becomes one of them. What is left at the last exit leaves there.

    Args:
        confidence: (N, T), floating point.
        thresholds: (T - 1,): 1 or more never lets an image leave, below 0 always does.

    Raises:
        ValueError: not (N, T), other than T - 1 thresholds, or one that is NaN.
    """
    if confidence.ndim != 2 or confidence.shape[1] == 0:
        raise ValueError(f"confidence must be (N, T), got {confidence.shape}")
    limits = np.asarray(thresholds, np.float64)
    exits = confidence.shape[1]
    if limits.shape != (exits - 1,):
        raise ValueError(f"{exits} exits need {exits - 1} thresholds, got {limits.tolist()}")
    if np.isnan(limits).any():
        raise ValueError(f"a threshold is NaN: {limits.tolist()}")
    with np.errstate(over="ignore"):  # infinity decides the same
        limits = limits.astype(confidence.dtype)
    index = np.full(confidence.shape[0], exits - 1, np.intp)
    for t in range(exits - 2, -1, -1):  # backwards: the earliest exit has the last word
        index[confidence[:, t] > limits[t]] = t
    return index


def outcome(table: ExitTable, thresholds: ArrayLike, costs: str = "macs") -> Outcome:
    """Accuracy, mean cost and exits of a table under thresholds.

    Args:
        table: N images, T exits.
        thresholds: (T - 1,), see `apply_thresholds`.
        costs: "macs" or "milliseconds".

    Raises:
        ValueError: as `apply_thresholds`, or the table does not have these costs.
    """
    cost = table.costs(costs)
    index = apply_thresholds(table.confidence, thresholds)
    share = np.bincount(index, minlength=table.num_exits) / table.num_images
    return Outcome(
        exit_index=index,
        accuracy=_share_at(table.correct, index),
        cost=float(share @ cost)
        if costs != "macs" or table.image_cost is None
        else float(np.take_along_axis(table.image_cost, index[:, None], axis=1).mean()),
        share=share,
        top5=None if table.top5 is None else _share_at(table.top5, index),
    )


def _share_at(hits: NDArray[np.bool_], index: NDArray[np.intp]) -> float:
    """The share of images that have a hit at their exit."""
    return float(np.take_along_axis(hits, index[:, None], axis=1).mean())

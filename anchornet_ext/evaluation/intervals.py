"""How far a measured share can be trusted: what tells a gain from noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Two-sided 95 % of the normal distribution.
Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """Measured values with their 95 % intervals, arrays of one shape (or all scalars)."""

    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def __getitem__(self, index: int | slice) -> Estimate:
        return Estimate(
            np.asarray(self.value[index]), np.asarray(self.low[index]), np.asarray(self.high[index])
        )

    @property
    def half_width(self) -> NDArray[np.float64]:
        """Half of the interval's width; the interval need not lie evenly around the value."""
        return np.asarray((self.high - self.low) / 2)


def share(hits: ArrayLike, count: int) -> Estimate:
    """The share `hits / count` with its Wilson score interval (right also near 0, 1 and for few).

    Args:
        hits: how many of `count` images, 0 to `count`; fractions are allowed (means over repeats).
        count: number of images, at least 1.

    Raises:
        ValueError: `count` is below 1 or a number of hits is out of range.
    """
    number = np.asarray(hits, dtype=np.float64)
    if count < 1:
        raise ValueError(f"a share needs at least 1 image, got {count}")
    if ((number < 0) | (number > count) | np.isnan(number)).any():
        raise ValueError(f"hits must lie between 0 and {count}, got {number}")
    value = number / count
    square = Z_95**2 / count
    centre = (value + square / 2) / (1 + square)
    reach = Z_95 * np.sqrt(value * (1 - value) / count + square / (4 * count)) / (1 + square)
    # Rounding must not push an end past the value it belongs to.
    low = np.minimum(np.maximum(centre - reach, 0.0), value)
    high = np.maximum(np.minimum(centre + reach, 1.0), value)
    return Estimate(np.asarray(value), np.asarray(low), np.asarray(high))


def paired_difference(first: ArrayLike, second: ArrayLike, z: float = Z_95) -> Estimate:
    """Mean of `second - first` over the same images, with its normal interval.

    Two systems that see the same images err on many of the same ones, so their difference is known
    far better than the two accuracies are.

    Args:
        first, second: (N, ...) scores of each image in [0, 1], correctness for example.
        z: standard errors to either side; more than for 95 % where several are looked at together.

    Returns:
        Estimates of shape (...). Of fewer than two images the interval is [-1, 1].

    Raises:
        ValueError: the shapes differ or there is no image.
    """
    one, two = np.asarray(first), np.asarray(second)
    if one.shape != two.shape or one.ndim == 0 or len(one) == 0:
        raise ValueError(
            f"paired scores must have one shape (N, ...), got {one.shape} and {two.shape}"
        )
    difference = two.astype(np.float64) - one.astype(np.float64)
    count = len(difference)
    mean = difference.mean(axis=0)
    if count < 2:
        return Estimate(np.asarray(mean), np.full_like(mean, -1.0), np.full_like(mean, 1.0))
    # Where no pair differs the spread would be 0, although the next pair might differ: reckon with
    # at least one that does.
    spread = np.sqrt(np.maximum(difference.var(axis=0, ddof=1), 1 / count) / count)
    low = np.maximum(mean - z * spread, -1.0)
    high = np.minimum(mean + z * spread, 1.0)
    return Estimate(np.asarray(mean), np.asarray(low), np.asarray(high))

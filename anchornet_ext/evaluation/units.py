"""Numbers as a reader wants them: scaled, rounded to what is known, with their unit."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from .intervals import Estimate

_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


@dataclass(frozen=True)
class Scale:
    """A factor that brings values near 1, and the words for it."""

    factor: float
    prefix: str

    @property
    def macs(self) -> str:
        """The unit of multiply-adds, "GMACs"."""
        return f"{self.prefix}MACs"


def scale_of(values: Iterable[float]) -> Scale:
    """One scale for all `values`: that of the largest."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    # 0.79 and 4.01 G read better than 790 and 4010 M.
    for factor, prefix in _PREFIXES:
        if largest >= factor:
            return Scale(factor, prefix)
    return Scale(1.0, "")


def macs(value: float | None) -> str:
    """Multiply-adds with three digits, "1.25 GMACs"."""
    if value is None:
        return "not known"
    scale = scale_of([value])
    return f"{three_digits(value / scale.factor)} {scale.macs}"


def three_digits(value: float) -> str:
    """1.25, 12.5, 125, 1250; 0.0125."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"


def milliseconds(value: float | None) -> str:
    """A time with three digits and its unit."""
    return "not measured" if value is None else f"{three_digits(value)} ms"


def percent(share: float, num_images: int | None = None) -> str:
    """A share in per cent; two decimals only where there are enough images to fill them."""
    decimals = 2 if num_images is not None and num_images >= 10_000 else 1
    return f"{100 * share:.{decimals}f} %"


def percent_range(estimate: Estimate, num_images: int | None = None) -> str:
    """A scalar estimate with its interval, "74.5 % (74.1 to 74.9)"."""
    low, high = (
        percent(float(end), num_images).removesuffix(" %") for end in (estimate.low, estimate.high)
    )
    return f"{percent(float(estimate.value), num_images)} ({low} to {high})"


def points(difference: float) -> str:
    """A difference of accuracies in percentage points, without its sign, "0.21 points"."""
    size = abs(100 * difference)
    text = f"{size:.2f}" if size < 1 else f"{size:.1f}"
    return f"{text} {'point' if text in ('1.0', '1.00') else 'points'}"


def times(ratio: float) -> str:
    """A ratio, "3.4 times"."""
    return f"{three_digits(ratio) if ratio < 1 else f'{ratio:.1f}'} times"


def whole(count: int) -> str:
    """A count with a thin space between thousands, 50 000."""
    return f"{count:,}".replace(",", "\u202f")


def plural(count: int, word: str) -> str:
    """ "1 image", "50 000 images"; the word's plural is regular, or given after a slash."""
    one, _, many = word.partition("/")
    return f"{whole(count)} {one if count == 1 else many or one + 's'}"

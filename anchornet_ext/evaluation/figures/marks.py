"""What several figures draw in the same way: colours, intervals, axes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from anchornet_ext.evaluation.curves import BudgetedCurve
from anchornet_ext.evaluation.intervals import Estimate
from anchornet_ext.evaluation.theme import Theme, plain_text
from anchornet_ext.evaluation.units import scale_of, three_digits

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_METHOD_WORDS = {"search": "thresholds searched", "geometric": "geometric rule"}


class Colours:
    """Hands out colours: one for each curve; a system's points have the colour of its first."""

    def __init__(self, theme: Theme) -> None:
        self._theme = theme
        self._used = 0
        self._systems: dict[str, str] = {}

    def of_curve(self, system: str) -> str:
        colour = self._theme.colour(self._used)
        self._used += 1
        self._systems.setdefault(system, colour)
        return colour

    def of_system(self, system: str) -> str:
        return self._systems[system] if system in self._systems else self.of_curve(system)


def draw_band(
    axes: Axes,
    places: NDArray[np.float64],
    found: Estimate,
    order: NDArray[np.intp],
    colour: str,
) -> None:
    """The interval around a curve. Of one system only its first curve has one: those of the others
    are as wide, and on top of each other none could be told apart."""
    axes.fill_between(
        places,
        100 * found.low[order],
        100 * found.high[order],
        color=colour,
        alpha=0.15,
        linewidth=0,
    )


def draw_error_bars(
    axes: Axes,
    places: NDArray[np.float64] | NDArray[np.int64],
    found: Estimate,
    colour: str,
    alpha: float = 0.8,
) -> None:
    """The intervals of single values."""
    value = np.atleast_1d(found.value)
    below = value - np.atleast_1d(found.low)
    above = np.atleast_1d(found.high) - value
    axes.errorbar(
        places,
        100 * value,
        yerr=(100 * below, 100 * above),
        fmt="none",
        ecolor=colour,
        elinewidth=1.2,
        capsize=2.5,
        alpha=alpha,
    )


def label_steps(
    axes: Axes,
    num_exits: int,
    cost: NDArray[np.float64] | None,
    label: str = "steps taken by every image",
) -> None:
    """Numbers the steps on the horizontal axis, below them their `cost` if there are few."""
    every = -(-num_exits // 10)
    steps = np.arange(1, num_exits + 1, every)
    names = [str(step) for step in steps]
    if cost is not None and num_exits <= 6:
        scale = scale_of(cost)
        names = [f"{step}\n{three_digits(cost[step - 1] / scale.factor)}" for step in steps]
        label += f"\n(below: {scale.macs} per image)"
    axes.set_xticks(steps, names)
    axes.set_xlabel(label)
    if num_exits == 1:
        axes.set_xlim(0.5, 1.5)


def curve_name(curve: BudgetedCurve, *, several: bool) -> str:
    """What a curve is called in a legend, of `several` systems or of one."""
    words = _METHOD_WORDS[curve.method]
    return plain_text(f"{curve.system}: {words}" if several else words)


def use_logarithms(axes: Axes) -> None:
    """Makes the horizontal axis logarithmic, with numbers at 1, 2 and 5 times the powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())

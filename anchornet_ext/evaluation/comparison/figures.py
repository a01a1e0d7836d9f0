"""Accuracy over cost of several systems, one colour each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from anchornet_ext.evaluation.curves import AnytimeCurve, BudgetedCurve, Costs
from anchornet_ext.evaluation.figures.marks import use_logarithms
from anchornet_ext.evaluation.theme import (
    LIGHT,
    LINES,
    MARKERS,
    Theme,
    add_legend,
    new_figure,
    plain_text,
    style_axes,
)
from anchornet_ext.evaluation.units import scale_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: A cost axis whose largest value is this many times the smallest is drawn in logarithms.
_LOGARITHMIC_FROM = 6


def draw_systems(
    names: Sequence[str],
    anytime: Sequence[AnytimeCurve],
    curves: Sequence[BudgetedCurve],
    *,
    costs: Costs,
    theme: Theme = LIGHT,
) -> Figure:
    """Exits as points, with their 95 % intervals, and budgeted curves as lines through their own.

    Args:
        names: of all systems, in the order of their colours, drawn or not.
        anytime: of the systems, by their names.
        curves: of those that have one, by their names.
        costs: "macs" or "milliseconds"; systems without these are left out.
    """
    figure = new_figure(theme, 5.8)
    axes = figure.add_subplot()
    exits = {one.system: one.macs if costs == "macs" else one.milliseconds for one in anytime}
    known = {name: values for name, values in exits.items() if values is not None}
    every = [float(value) for values in known.values() for value in values]
    factor = scale_of(every).factor if costs == "macs" else 1.0
    unit = scale_of(every).macs if costs == "macs" else "ms"
    lines = {curve.system: curve for curve in curves if curve.costs == costs}
    for place, name in enumerate(names):
        if name not in known:
            continue
        colour, marker = theme.colour(place), MARKERS[place % len(MARKERS)]
        one = next(each for each in anytime if each.system == name)
        cost = known[name] / factor
        value = 100 * one.top1.value
        axes.errorbar(
            cost,
            value,
            yerr=(value - 100 * one.top1.low, 100 * one.top1.high - value),
            fmt="none",
            ecolor=colour,
            elinewidth=1,
            capsize=2,
            alpha=0.35,
        )
        curve = lines.get(name)
        axes.plot(
            cost,
            value,
            color=colour,
            linestyle="none" if curve is not None else ":",
            linewidth=1.2,
            marker=marker,
            markersize=10 if one.num_exits == 1 else 6,
            markerfacecolor=colour if one.num_exits == 1 else theme.paper,
            markeredgewidth=1.6,
            label=plain_text(name) if curve is None else None,
        )
        if curve is not None:
            order = np.argsort(curve.cost, kind="stable")
            axes.plot(
                curve.cost[order] / factor,
                100 * curve.accuracy.value[order],
                color=colour,
                linestyle=LINES[place % len(LINES)],
                linewidth=2,
                marker=marker,
                markevery=[],
                label=plain_text(name),
            )
    axes.set_xlabel(f"mean {'cost' if costs == 'macs' else 'time'} of an image ({unit})")
    axes.set_ylabel("top-1 accuracy (%)")
    style_axes(axes, theme)
    if every and min(every) > 0 and max(every) / min(every) > _LOGARITHMIC_FROM:
        use_logarithms(axes)
    axes.margins(0.05, 0.1)
    add_legend(figure, axes, theme)
    return figure

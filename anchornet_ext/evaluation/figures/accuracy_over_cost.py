"""Accuracy over mean cost (Fig. 5, and Fig. 6 in the same axes)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from anchornet_ext.evaluation.curves import AnytimeCurve, BudgetedCurve, Costs, OperatingPoint
from anchornet_ext.evaluation.intervals import share
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
from anchornet_ext.evaluation.units import Scale, scale_of

from .marks import Colours, curve_name, draw_band, draw_error_bars, use_logarithms

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from anchornet_ext.evaluation.report_data import MeasuredTime, PlainNetwork

#: A cost axis whose largest value is this many times the smallest is drawn in logarithms.
_LOGARITHMIC_FROM = 12


def draw_accuracy_over_cost(
    curves: Sequence[BudgetedCurve],
    anytime: Sequence[AnytimeCurve] = (),
    plain: Sequence[PlainNetwork] = (),
    points: Sequence[OperatingPoint] = (),
    times: Sequence[MeasuredTime] = (),
    *,
    costs: Costs = "macs",
    theme: Theme = LIGHT,
) -> Figure:
    """Accuracy over mean cost (Fig. 5, and Fig. 6 in the same axes).

    Args:
        curves: of which those of `costs` are drawn, with their 95 % bands.
        anytime: points where all images leave at the same exit, numbered by the exit.
        plain: networks to compare with.
        points: operating points, with their names; over milliseconds only where `times` has one of
            that name.
        times: measured times of operating points.
        costs: the horizontal axis.
    """
    figure = new_figure(theme, 5.6)
    axes = figure.add_subplot()
    timed = {time.name: time.milliseconds for time in times if time.kind == "point"}
    placed = [
        (letter, point, _point_cost(point, costs, timed)) for letter, point in lettered(points)
    ]
    known_plain = [(one, _plain_cost(one, costs)) for one in plain]
    shown = [curve for curve in curves if curve.costs == costs]
    scale = _cost_scale(
        [value for curve in shown for value in curve.cost]
        + [value for curve in anytime for value in _exit_costs(curve, costs)]
        + [cost for _, cost in known_plain if cost is not None]
        + [cost for _, _, cost in placed if cost is not None],
        costs,
    )
    colours = Colours(theme)
    for index, curve in enumerate(shown):
        colour = colours.of_curve(curve.system)
        order = np.argsort(curve.cost, kind="stable")
        cost = curve.cost[order] / scale.factor
        if curve.system not in [other.system for other in shown[:index]]:
            draw_band(axes, cost, curve.accuracy, order, colour)
        axes.plot(
            cost,
            100 * curve.accuracy.value[order],
            color=colour,
            linestyle=LINES[index % len(LINES)],
            linewidth=2,
            label=curve_name(curve, several=len({one.system for one in shown}) > 1),
        )
    for index, exits in enumerate(anytime):
        cost = _exit_costs(exits, costs) / scale.factor
        if not len(cost):
            continue
        colour = colours.of_system(exits.system)
        draw_error_bars(axes, cost, exits.top1, colour)
        name = "all images leave at exit 1, 2, ..." if exits.num_exits > 1 else "exit 1"
        axes.plot(
            cost,
            100 * exits.top1.value,
            color=colour,
            linestyle="none",
            marker=MARKERS[index % len(MARKERS)],
            markersize=14,
            markerfacecolor=theme.paper,
            markeredgewidth=1.8,
            label=plain_text(f"{exits.system}: {name}" if len(anytime) > 1 else name),
        )
        for step, place, height in zip(
            range(1, exits.num_exits + 1), cost, 100 * exits.top1.value, strict=True
        ):
            axes.annotate(
                str(step), (place, height), color=theme.ink, fontsize=9, ha="center", va="center"
            )
    for index, (network, known) in enumerate(known_plain):
        if known is None:
            continue
        found = share(network.correct, network.num_images)
        draw_error_bars(axes, np.array([known / scale.factor]), found, theme.plain)
        axes.plot(
            [known / scale.factor],
            [100 * float(found.value)],
            linestyle="none",
            marker=("*", "X", "p", "h")[index % 4],
            markersize=14,
            color=theme.plain,
            label=plain_text(f"{network.name} (whole image)"),
        )
    _mark_points(
        axes,
        [
            (letter, point, cost / scale.factor)
            for letter, point, cost in placed
            if cost is not None
        ],
        theme,
    )
    axes.set_xlabel(_cost_label(costs, scale))
    axes.set_ylabel("top-1 accuracy (%)")
    style_axes(axes, theme)
    _scale_cost_axis(axes, costs)
    axes.margins(0.05, 0.1)
    add_legend(figure, axes, theme)
    return figure


def lettered(points: Sequence[OperatingPoint]) -> list[tuple[str, OperatingPoint]]:
    """The points from few to many steps, each with its letter, the same in figures and tables."""
    ordered = sorted(points, key=lambda point: point.inputs)
    return [
        (chr(ord("A") + place) if place < 26 else str(place + 1), point)
        for place, point in enumerate(ordered)
    ]


def _mark_points(
    axes: Axes, placed: Sequence[tuple[str, OperatingPoint, float]], theme: Theme
) -> None:
    """Operating points as lettered diamonds; their names are in the legend, unless too many."""
    from matplotlib.patheffects import withStroke

    for letter, point, cost in placed:
        height = 100 * float(point.accuracy.value)
        axes.plot(
            [cost], [height], marker="D", markersize=9, linestyle="none",
            color=theme.point, markeredgecolor=theme.paper, zorder=6,
            label=plain_text(f"{letter}: {point.name}") if len(placed) <= 6 else None,
        )  # fmt: skip
        axes.annotate(
            letter, (cost, height), (0, 8), textcoords="offset points", ha="center",
            va="bottom", fontsize=10, fontweight="bold", color=theme.ink, zorder=7,
            path_effects=[withStroke(linewidth=3, foreground=theme.paper)],
        )  # fmt: skip


def _exit_costs(curve: AnytimeCurve, costs: Costs) -> NDArray[np.float64]:
    if costs == "inputs":
        return np.arange(1, curve.num_exits + 1, dtype=np.float64)
    values = curve.macs if costs == "macs" else curve.milliseconds
    return np.empty(0) if values is None else values


def _plain_cost(network: PlainNetwork, costs: Costs) -> float | None:
    return {"macs": network.macs, "milliseconds": network.milliseconds, "inputs": None}[costs]


def _point_cost(point: OperatingPoint, costs: Costs, timed: dict[str, float]) -> float | None:
    if costs == "milliseconds":
        return timed.get(point.name)
    return point.macs if costs == "macs" else point.inputs


def _cost_scale(values: Sequence[float], costs: Costs) -> Scale:
    return scale_of(values) if costs == "macs" else Scale(1.0, "")


def _cost_label(costs: Costs, scale: Scale) -> str:
    if costs == "macs":
        return f"mean cost of an image ({scale.macs})"
    if costs == "milliseconds":
        return "mean time of an image (ms)"
    return "steps that an image takes on average"


def _scale_cost_axis(axes: Axes, costs: Costs) -> None:
    low, high = axes.dataLim.intervalx
    if costs != "inputs" and low > 0 and high / low > _LOGARITHMIC_FROM:
        use_logarithms(axes)

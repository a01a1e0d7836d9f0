"""The figures of a report (like the paper's Figures 5 to 7), for one system or several together.

Each function returns a matplotlib `Figure` of its own; nothing global is touched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .curves import AnytimeCurve, BudgetedCurve, Costs, OperatingPoint
from .intervals import Estimate, share
from .reliability import Reliability
from .theme import (
    LIGHT,
    LINES,
    MARKERS,
    WIDTH,
    Theme,
    add_legend,
    new_figure,
    plain_text,
    style_axes,
)
from .units import Scale, scale_of, three_digits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .report_data import MeasuredTime, PlainNetwork

#: A cost axis whose largest value is this many times the smallest is drawn in logarithms.
_LOGARITHMIC_FROM = 12
METHOD_WORDS = {"search": "thresholds searched", "geometric": "geometric rule"}


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
    colours = _Colours(theme)
    for index, curve in enumerate(shown):
        colour = colours.of_curve(curve.system)
        order = np.argsort(curve.cost, kind="stable")
        cost = curve.cost[order] / scale.factor
        if curve.system not in [other.system for other in shown[:index]]:
            _band(axes, cost, curve.accuracy, order, colour)
        axes.plot(
            cost,
            100 * curve.accuracy.value[order],
            color=colour,
            linestyle=LINES[index % len(LINES)],
            linewidth=2,
            label=_curve_name(curve, several=len({one.system for one in shown}) > 1),
        )
    for index, exits in enumerate(anytime):
        cost = _exit_costs(exits, costs) / scale.factor
        if not len(cost):
            continue
        colour = colours.of_system(exits.system)
        _error_bars(axes, cost, exits.top1, colour)
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
        _error_bars(axes, np.array([known / scale.factor]), found, theme.plain)
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


def draw_anytime(curves: Sequence[AnytimeCurve], *, theme: Theme = LIGHT) -> Figure:
    """Top-1 and, where known, top-5 accuracy when every image leaves at exit t (Fig. 6)."""
    with_top5 = any(curve.top5 is not None for curve in curves)
    figure = new_figure(theme, 3.7)
    panels = figure.subplots(1, 2 if with_top5 else 1, squeeze=False)[0]
    for axes, top in zip(panels, ("top-1", "top-5"), strict=False):
        most = max((curve.num_exits for curve in curves), default=1)
        for index, curve in enumerate(curves):
            found = curve.top1 if top == "top-1" else curve.top5
            if found is None:
                continue
            steps = np.arange(1, curve.num_exits + 1)
            colour = theme.colour(index)
            axes.fill_between(
                steps, 100 * found.low, 100 * found.high, color=colour, alpha=0.15, linewidth=0
            )
            _error_bars(axes, steps, found, colour)
            axes.plot(
                steps,
                100 * found.value,
                color=colour,
                linestyle=LINES[index % len(LINES)],
                marker=MARKERS[index % len(MARKERS)],
                linewidth=2,
                label=plain_text(curve.system) if len(curves) > 1 else None,
            )
        if with_top5:
            axes.set_title(
                "the answer is right" if top == "top-1" else "the right class is among the first 5"
            )
        axes.set_ylabel(f"{top} accuracy (%)")
        style_axes(axes, theme)
        axes.margins(0.08, 0.12)
        _step_axis(axes, most, curves[0].macs if len(curves) == 1 else None)
    add_legend(figure, panels[0], theme)
    return figure


def draw_expected_inputs(
    curve: BudgetedCurve,
    *,
    samples: int = 4,
    others: Sequence[BudgetedCurve] = (),
    theme: Theme = LIGHT,
) -> Figure:
    """Accuracy over the expected number of inputs, with exits at some points (Fig. 7).

    Args:
        curve: whose exits are shown.
        samples: at how many points, at most 8.
        others: more curves in the same axes.
    """
    chosen = sample_points(curve, samples)
    figure = new_figure(theme, 6.0)
    grid = figure.add_gridspec(2, len(chosen), height_ratios=(1, 2.2))
    axes = figure.add_subplot(grid[1, :])
    colours = _Colours(theme)
    for index, one in enumerate((curve, *others)):
        order = np.argsort(one.inputs, kind="stable")
        colour = colours.of_curve(one.system)
        if index == 0 or one.system != curve.system:
            _band(axes, one.inputs[order], one.accuracy, order, colour)
        axes.plot(
            one.inputs[order],
            100 * one.accuracy.value[order],
            color=colour,
            linestyle=LINES[index % len(LINES)],
            linewidth=2,
            label=_curve_name(one, several=len({curve.system, *(o.system for o in others)}) > 1)
            if others
            else None,
        )
    axes.set_xlabel("steps that an image takes on average, E(t)")
    axes.set_ylabel("top-1 accuracy (%)")
    style_axes(axes, theme)
    axes.margins(0.04, 0.14)
    add_legend(figure, axes, theme)
    steps = np.arange(1, curve.share.shape[1] + 1)
    tallest = 100 * float(curve.share[chosen].max())
    for column, place in enumerate(chosen):
        # Roman, as the operating points have letters and the exits have numbers.
        numeral = ("I", "II", "III", "IV", "V", "VI", "VII", "VIII")[column]
        at = (float(curve.inputs[place]), 100 * float(curve.accuracy.value[place]))
        axes.plot(*at, marker="o", markersize=17, color=theme.colour(0), zorder=5)
        axes.annotate(
            numeral, at, ha="center", va="center", fontsize=10, fontweight="bold",
            color=theme.paper, zorder=6,
        )  # fmt: skip
        small = figure.add_subplot(grid[0, column])
        small.bar(steps, 100 * curve.share[place], color=theme.colour(0), width=0.8)
        small.set_ylim(0, tallest * 1.2)
        style_axes(small, theme, grid=False)
        small.set_title(f"{numeral}: {at[0]:.2f} steps, {at[1]:.1f} %")
        small.title.set_fontsize(10.5)
        _step_axis(small, len(steps), None, label="left after step")
        if column == 0:
            small.set_ylabel("images (%)")
        else:
            small.tick_params(labelleft=False)
        if len(steps) <= 6:
            for step, part in zip(steps, curve.share[place], strict=True):
                text = f"{100 * part:.0f}" if part == 0 or part >= 0.005 else "<1"
                small.annotate(
                    text, (step, 100 * part), (0, 1), textcoords="offset points",
                    ha="center", va="bottom", fontsize=9, color=theme.faint,
                )  # fmt: skip
    return figure


def draw_reliability(exits: Sequence[Reliability], *, theme: Theme = LIGHT) -> Figure:
    """Confidence against accuracy at each exit, with how many images have which confidence.

    Of more than ten exits, ten are drawn, evenly spaced, the first and the last among them.
    """
    shown = list(exits)
    if len(shown) > 10:
        shown = [exits[index] for index in np.linspace(0, len(exits) - 1, 10).round().astype(int)]
    columns = min(len(shown), 5 if len(shown) > 4 else 4)
    rows = -(-len(shown) // columns)
    width = WIDTH if columns >= 3 else 3.6 * columns
    figure = new_figure(theme, 0.6 + 2.7 * rows, width)
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=(3.2, 1) * rows)
    for index, one in enumerate(shown):
        row, column = divmod(index, columns)
        axes = figure.add_subplot(grid[2 * row, column])
        filled = one.count > 0
        axes.plot([0, 100], [0, 100], color=theme.faint, linewidth=1.2, linestyle=(0, (4, 3)))
        where = Estimate(
            one.accuracy.value[filled], one.accuracy.low[filled], one.accuracy.high[filled]
        )
        claimed = 100 * one.confidence[filled]
        axes.fill_between(
            claimed, claimed, 100 * where.value, color=theme.colour(1), alpha=0.25, linewidth=0
        )
        _error_bars(axes, claimed, where, theme.colour(0), alpha=0.45)
        axes.plot(
            claimed, 100 * where.value, color=theme.colour(0), marker="o", markersize=3.5,
            linewidth=1.6, clip_on=False, zorder=4,
        )  # fmt: skip
        axes.set_title(f"exit {one.exit_step}: error {100 * one.error:.1f} %")
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 100)
        axes.set_xticks([0, 50, 100])
        axes.set_yticks([0, 50, 100])
        axes.tick_params(labelbottom=False)
        style_axes(axes, theme)
        below = figure.add_subplot(grid[2 * row + 1, column], sharex=axes)
        below.bar(
            100 * one.edges[:-1],
            100 * one.count / one.count.sum(),
            width=100 * np.diff(one.edges),
            align="edge",
            color=theme.faint,
            alpha=0.6,
            linewidth=0.5,
            edgecolor=theme.paper,
        )
        style_axes(below, theme, grid=False)
        below.set_ylim(bottom=0)
        below.locator_params(axis="y", nbins=2)
        axes.set_ylabel("right (%)" if column == 0 else "")
        below.set_ylabel("images (%)" if column == 0 else "")
        below.set_xlabel("confidence (%)")
        if column:
            axes.tick_params(labelleft=False)
        axes.title.set_fontsize(10.5)
    figure.align_ylabels()
    return figure


def draw_speedups(times: Sequence[MeasuredTime], reference: MeasuredTime,
                  *, theme: Theme = LIGHT) -> Figure:  # fmt: skip
    """Measured against theoretical speed-up (Table 2's comparison), one pair of bars each."""
    shown = [time for time in times if time is not reference]
    figure = new_figure(theme, 1.3 + 0.62 * max(1, len(shown)))
    axes = figure.add_subplot()
    rows = np.arange(len(shown))
    for offset, label, colour, hatch, values in (
        (-0.19, "expected from the multiply-adds", theme.colour(4), "//",
         [reference.macs / time.macs for time in shown]),
        (0.19, "measured on the clock", theme.colour(0), None,
         [reference.milliseconds / time.milliseconds for time in shown]),
    ):  # fmt: skip
        bars = axes.barh(
            rows + offset, values, height=0.36, color=colour, label=label, hatch=hatch,
            edgecolor=theme.paper, linewidth=0,
        )  # fmt: skip
        axes.bar_label(bars, [f"{value:.2f}x" for value in values], padding=3, fontsize=9,
                       color=theme.ink)  # fmt: skip
    axes.axvline(1, color=theme.faint, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.set_yticks(rows, [plain_text(time.name) for time in shown])
    axes.invert_yaxis()
    axes.set_xlabel(plain_text(f"times as fast as {reference.name}"))
    style_axes(axes, theme)
    axes.grid(False, axis="y")
    axes.margins(x=0.12)
    add_legend(figure, axes, theme)
    return figure


def sample_points(curve: BudgetedCurve, samples: int) -> list[int]:
    """Points of the curve spread over its expected number of inputs, ascending, all different."""
    inputs = curve.inputs
    wanted = np.linspace(inputs.min(), inputs.max(), samples + 2)[1:-1]
    # The steep part is at the low end, where the interesting choices are.
    wanted = (
        inputs.min()
        + (wanted - inputs.min()) ** 1.5 / max(float(inputs.max() - inputs.min()), 1e-12) ** 0.5
    )
    nearest = {int(np.abs(inputs - value).argmin()) for value in wanted}
    distinct: dict[float, int] = {}
    for place in sorted(nearest):
        distinct.setdefault(round(float(inputs[place]), 6), place)
    return sorted(distinct.values(), key=lambda place: float(inputs[place]))


def lettered(points: Sequence[OperatingPoint]) -> list[tuple[str, OperatingPoint]]:
    """The points from few to many steps, each with its letter, the same in figures and tables."""
    ordered = sorted(points, key=lambda point: point.inputs)
    return [
        (chr(ord("A") + place) if place < 26 else str(place + 1), point)
        for place, point in enumerate(ordered)
    ]


class _Colours:
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


def _band(
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


def _error_bars(
    axes: Axes,
    places: NDArray[np.float64] | NDArray[np.int64],
    found: Estimate,
    colour: str,
    alpha: float = 0.8,
) -> None:
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


def _step_axis(
    axes: Axes,
    num_exits: int,
    cost: NDArray[np.float64] | None,
    label: str = "steps taken by every image",
) -> None:
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


def _curve_name(curve: BudgetedCurve, *, several: bool) -> str:
    words = METHOD_WORDS[curve.method]
    return plain_text(f"{curve.system}: {words}" if several else words)


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
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())

"""Accuracy over the expected number of inputs (Fig. 7)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from anchornet_ext.evaluation.curves import BudgetedCurve
from anchornet_ext.evaluation.theme import LIGHT, LINES, Theme, add_legend, new_figure, style_axes

from .marks import Colours, curve_name, draw_band, label_steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    colours = Colours(theme)
    for index, one in enumerate((curve, *others)):
        order = np.argsort(one.inputs, kind="stable")
        colour = colours.of_curve(one.system)
        if index == 0 or one.system != curve.system:
            draw_band(axes, one.inputs[order], one.accuracy, order, colour)
        axes.plot(
            one.inputs[order],
            100 * one.accuracy.value[order],
            color=colour,
            linestyle=LINES[index % len(LINES)],
            linewidth=2,
            label=curve_name(one, several=len({curve.system, *(o.system for o in others)}) > 1)
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
        label_steps(small, len(steps), None, label="left after step")
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

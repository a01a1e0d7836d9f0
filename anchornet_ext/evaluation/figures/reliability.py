"""Confidence against accuracy, exit by exit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from anchornet_ext.evaluation.intervals import Estimate
from anchornet_ext.evaluation.reliability import Reliability
from anchornet_ext.evaluation.theme import LIGHT, WIDTH, Theme, new_figure, style_axes

from .marks import draw_error_bars

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
        draw_error_bars(axes, claimed, where, theme.colour(0), alpha=0.45)
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

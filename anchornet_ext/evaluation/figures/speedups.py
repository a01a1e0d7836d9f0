"""Measured against theoretical speed-ups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from anchornet_ext.evaluation.theme import (
    LIGHT,
    Theme,
    add_legend,
    new_figure,
    plain_text,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from anchornet_ext.evaluation.report_data import MeasuredTime


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

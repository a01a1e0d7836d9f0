"""Accuracy when every image leaves at the same exit (Fig. 6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from anchornet_ext.evaluation.curves import AnytimeCurve
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

from .marks import draw_error_bars, label_steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
            draw_error_bars(axes, steps, found, colour)
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
        label_steps(axes, most, curves[0].macs if len(curves) == 1 else None)
    add_legend(figure, panels[0], theme)
    return figure

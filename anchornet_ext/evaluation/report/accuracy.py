"""The sections of a report on accuracy: over costs, over steps, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anchornet_ext.evaluation import figures, page, sentences
from anchornet_ext.evaluation.curves import AnytimeCurve, BudgetedCurve, Costs, why_no_curve
from anchornet_ext.evaluation.figure_files import FigureFiles
from anchornet_ext.evaluation.report_data import ReportData
from anchornet_ext.evaluation.theme import Theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def cost_section(data: ReportData, exits: AnytimeCurve, files: FigureFiles) -> str:
    """Accuracy over each kind of cost that is known; "" where nothing can be drawn."""
    parts: list[str] = []
    times = () if data.latency is None else data.latency.times
    kinds: tuple[tuple[Costs, str, str], ...] = (
        ("macs", "accuracy_over_macs", "multiply-adds"),
        ("milliseconds", "accuracy_over_milliseconds", "milliseconds"),
        ("inputs", "accuracy_over_inputs", "steps"),
    )
    for costs, name, words in kinds:
        curves = [curve for curve in data.curves if curve.costs == costs]
        known = exits.macs if costs == "macs" else exits.milliseconds
        if not curves and (known is None or costs == "inputs"):
            continue
        said = sentences.about_methods(curves)
        if curves:
            said.insert(0, sentences.about_saving(exits, curves[0]))
        if costs == "macs":
            said.extend(sentences.about_plain(one, exits, next(iter(curves), None))
                        for one in data.plain)  # fmt: skip
            why = why_no_curve(data.table, "macs")
            if not curves and why is not None and exits.num_exits > 1:
                said.append(f"There is no curve: {why}.")
        if costs == "milliseconds":
            said.extend(sentences.about_added_times(exits, data.points, data.latency))
        said.extend(sentences.about_cross_fit(curve) for curve in curves[:1])

        def draw(theme: Theme, costs: Costs = costs) -> Figure:
            return figures.draw_accuracy_over_cost(
                data.curves, [exits], data.plain, data.points, times, costs=costs, theme=theme
            )

        caption = f"Top-1 accuracy over the mean {words} of an image."
        if exits.num_exits > 1:
            caption += (
                " Numbered circles: every image leaves at that exit. Lines: images leave when they "
                "are sure enough. Further up and further left is better."
            )
        if parts:
            parts.append(page.heading(f"In {words}"))
        parts += [
            page.bullets(said),
            files.figure(name, draw, f"{caption} {' '.join(said)}", caption),
        ]
    if not parts and exits.num_exits == 1:
        return ""
    if not parts:
        why = why_no_curve(data.table, "macs") or "no curve was computed"
        parts = [page.paragraph(f"Not drawn: {why}.")]
    return page.section("Accuracy for a cost", *parts)


def anytime_section(exits: AnytimeCurve, files: FigureFiles) -> str:
    """Accuracy when all images leave at the same exit; "" of a single exit."""
    if exits.num_exits == 1:
        return ""
    said = sentences.about_anytime(exits)
    caption = "Accuracy when every image takes the same number of steps, with 95 % intervals."
    return page.section(
        "What each step adds",
        page.sentences(said),
        files.figure(
            "anytime",
            lambda theme: figures.draw_anytime([exits], theme=theme),
            f"{caption} {' '.join(said)}",
            caption,
        ),
    )


def inputs_section(data: ReportData, main: BudgetedCurve | None, files: FigureFiles) -> str:
    """How many steps images take along the curve `main`; "" without one."""
    if main is None:
        return ""
    chosen = figures.sample_points(main, 4)
    said = sentences.about_inputs(main, chosen)
    caption = (
        "Top-1 accuracy over the mean number of steps; above, how many images left at each step at "
        "the marked points."
    )
    others = [curve for curve in data.curves if curve is not main and curve.costs == main.costs]
    return page.section(
        "How many steps images take",
        page.paragraph(
            "With higher thresholds images must be surer to leave, so more of them take the later "
            "steps."
        ),
        page.sentences(said),
        files.figure(
            "exits",
            lambda theme: figures.draw_expected_inputs(main, others=others, theme=theme),
            f"{caption} {' '.join(said)}",
            caption,
        ),
    )

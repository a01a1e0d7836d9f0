"""The section of a report on confidences."""

from __future__ import annotations

from anchornet_ext.evaluation import figures, page, sentences
from anchornet_ext.evaluation.figure_files import FigureFiles
from anchornet_ext.evaluation.reliability import Reliability, reliability
from anchornet_ext.evaluation.report_data import ReportData


def confidence_section(data: ReportData, files: FigureFiles) -> str:
    """How far the confidences are from the share of right answers."""
    table = data.table
    exits: list[Reliability] = [
        reliability(table.confidence[:, step], table.correct[:, step], step + 1)
        for step in range(table.num_exits)
    ]
    said = sentences.about_reliability(exits)
    caption = (
        "Of the images with a given confidence, how many are right (line, with 95 % intervals); on "
        "the dashed diagonal confidences are exact, below it the system is too sure. Grey: how "
        "many images have that confidence."
    )
    leaving = (
        "Whether an image leaves is decided by its confidence. Thresholds are fitted, so they "
        "make up for confidences that are wrong by the same amount for all images; but a "
        "number such as 0.9 means 90 % only where the line lies on the diagonal."
    )
    return page.section(
        "Can the confidence be trusted?",
        page.paragraph(leaving) if len(exits) > 1 else "",
        page.bullets(said),
        files.figure(
            "reliability",
            lambda theme: figures.draw_reliability(exits, theme=theme),
            f"{caption} {' '.join(said)}",
            caption,
        ),
    )

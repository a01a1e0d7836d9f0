"""How a report begins: what was evaluated, and what was found, in short."""

from __future__ import annotations

from html import escape

from anchornet_ext.evaluation import page, sentences
from anchornet_ext.evaluation.curves import AnytimeCurve, BudgetedCurve
from anchornet_ext.evaluation.report_data import EXITS_EXPLANATION, PLAIN_EXPLANATION, ReportData
from anchornet_ext.evaluation.units import macs, percent, plural, whole

_SHOWN_FAILURES = 20


def title(data: ReportData) -> str:
    """The name of the page, as text."""
    return f"{data.system} on {data.data}"


def header(data: ReportData, exits: AnytimeCurve) -> str:
    """The name of the page, what kind of system it is about, and its key figures."""
    count, last = exits.num_images, float(exits.top1.value[-1])
    explanation = data.explanation
    if explanation is None:
        explanation = EXITS_EXPLANATION if exits.num_exits > 1 else PLAIN_EXPLANATION
    key = [
        (whole(count), "images" if count != 1 else "image"),
        (str(exits.num_exits), "exits" if exits.num_exits != 1 else "exit"),
    ]
    if exits.num_exits > 1:
        key.append((percent(float(exits.top1.value[0]), count), "right after the first step"))
    several = exits.num_exits > 1
    key.append((percent(last, count), "right after all steps" if several else "right"))
    if exits.top5 is not None:
        key.append((percent(float(exits.top5.value[-1]), count), "among the first five"))
    if exits.macs is not None:
        key.append((macs(float(exits.macs[-1])), "for all steps" if several else "an image"))
    if data.failures:
        key.append((whole(len(data.failures)), "could not be read"))
    return (
        f"<header><h1>{escape(title(data))}</h1>\n"
        f"{page.paragraph(explanation)}\n{page.key_figures(key)}</header>"
    )


def summary(data: ReportData, exits: AnytimeCurve, main: BudgetedCurve | None) -> str:
    """The report in a few sentences, and what could not be read."""
    said = sentences.about_result(exits, main, data.plain, data.latency)
    failures = ""
    if data.failures:
        said.append(
            f"{plural(len(data.failures), 'image')} could not be read and "
            f"{'is' if len(data.failures) == 1 else 'are'} in no figure here."
        )
        shown = list(data.failures[:_SHOWN_FAILURES])
        if len(data.failures) > _SHOWN_FAILURES:
            shown.append(f"and {whole(len(data.failures) - _SHOWN_FAILURES)} more")
        failures = page.folded("Images that could not be read", page.bullets(shown))
    return page.section("In short", page.bullets([*said, *data.notes]), failures)

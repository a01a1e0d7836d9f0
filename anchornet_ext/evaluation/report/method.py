"""How a report ends: how everything was measured, and what its words mean."""

from __future__ import annotations

from anchornet_ext.evaluation import page, sentences
from anchornet_ext.evaluation.curves import BudgetedCurve
from anchornet_ext.evaluation.report_data import ReportData
from anchornet_ext.evaluation.units import whole

_WORDS = {
    "step, exit": "The system looks at an image in steps. After each one there is an exit, where "
    "the image can leave with an answer.",
    "multiply-adds (MACs)": "How much a network computes: one multiplication and one addition. "
    "1 GMACs is a thousand million of them. It does not depend on the machine.",
    "confidence": "The probability that the system gives its own answer, 0 to 100 %.",
    "threshold": "An image leaves at the first exit where its confidence is above that exit's "
    "threshold. Higher thresholds keep more images for the later steps, which costs more.",
    "top-1, top-5": "The share of images whose right class is the answer, or is among the five "
    "classes that the system finds most probable.",
    "anytime prediction": "Every image leaves at the same exit.",
    "budget": "The mean cost that images may have. Easy images may cost less so that hard ones can "
    "cost more.",
    "expected number of steps, E(t)": "How many steps an image takes on average.",
    "95 % interval": "The range that holds the true value in 95 of 100 such measurements on "
    "other images of the same kind.",
}


def method_section(data: ReportData, main: BudgetedCurve | None) -> str:
    """How everything was measured, as facts, and what the words mean."""
    facts = {"system": data.system, "images": f"{data.data} ({whole(data.table.num_images)})"}
    if main is not None:
        facts["thresholds of the curves"] = sentences.about_cross_fit(main)
        facts["seed"] = str(main.seed)
    facts["intervals"] = (
        "95 %: Wilson score intervals for accuracies, normal intervals of paired differences "
        "for comparisons on the same images"
    )
    facts.update(data.facts)
    return page.section(
        "How this was measured",
        page.facts(facts),
        page.heading("Words"),
        page.definitions(_WORDS),
    )

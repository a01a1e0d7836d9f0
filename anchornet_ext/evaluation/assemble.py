"""From an exit table to everything in its report."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from anchornet_ext._version import __version__
from anchornet_ext.policy.exit_policy import ExitPolicy
from anchornet_ext.policy.exit_table import ExitTable
from anchornet_ext.policy.fitting import METHODS
from anchornet_ext.training.run_log import RunLog

from .curves import BudgetedCurve, Costs, OperatingPoint, cross_fit, why_no_curve
from .gallery import Gallery, make_gallery
from .operating import decides_as, default_budgets, fitted_point, given_points, why_no_points
from .parts import TABLE
from .report_data import TWO_STAGE_EXPLANATION, PlainNetwork, ReportData
from .systems import ExitSystem, TwoStageSystem
from .units import macs

#: What the model's own policy is called.
OWN_POLICY = "the model's own"


def load_plain(path: Path) -> ExitTable:
    """The exit table of a network to compare with: a file, or the folder of its report.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or has no costs.
    """
    file = path / TABLE if path.is_dir() else path
    if not file.is_file():
        what = f"{path} has no {TABLE}" if path.is_dir() else f"there is no file {path}"
        raise FileNotFoundError(f"--plain: {what}; `anchornet evaluate --backbone` writes one")
    table = ExitTable.load(file, grid=False)
    if table.cost is None:
        raise ValueError(f"--plain: {file} does not say what the network costs")
    return table


def curves_of(table: ExitTable, system: str, log: RunLog) -> list[BudgetedCurve]:
    """Budgeted curves by both methods, and by the measured time where there is one."""
    made = []
    kinds: tuple[Costs, ...] = ("macs", "milliseconds")
    for costs in kinds:
        if why_no_curve(table, costs) is None:
            for method in METHODS if costs == "macs" else METHODS[:1]:
                log.line(f"fitting thresholds on halves of the images ({method}, {costs})")
                made.append(cross_fit(table, method, system=system, costs=costs))
    return made


def operating_points(
    table: ExitTable, budgets: Sequence[float] | None, policies: Mapping[str, ExitPolicy]
) -> tuple[list[OperatingPoint], list[str]]:
    """The points of a report, and what is to be said of those that are missing."""
    points = given_points(table, policies)
    reason = why_no_points(table)
    if reason is not None:
        return points, [f"There are no fitted operating points: {reason}."]
    notes: list[str] = []
    fitted: list[OperatingPoint] = []
    for budget in sorted(budgets or default_budgets(table.costs().tolist())):
        point = fitted_point(table, budget)
        same = next((one for one in fitted if decides_as(one.policy, point.policy)), None)
        if same is None:
            fitted.append(point)
        else:
            notes.append(f"A mean of {macs(budget)} buys nothing more than {same.name}.")
    return [*points, *fitted], notes


def plain_networks(
    table: ExitTable, others: Mapping[str, ExitTable]
) -> tuple[list[PlainNetwork], list[str]]:
    """The networks to compare with, and a note on each that was measured on other images."""
    networks, notes = [], []
    for path, other in others.items():
        name = str(other.metadata.get("system", path))
        networks.append(PlainNetwork.from_table(name, other))
        if not _same_images(table, other):
            notes.append(
                f"{name} was measured on other images than these ({other.num_images}), so the "
                "comparison with it is not exact."
            )
    return networks, notes


def gallery_of(
    table: ExitTable, points: Sequence[OperatingPoint], system: ExitSystem, folder: Path
) -> tuple[Gallery | None, list[str]]:
    """Pictures under the first operating point, or why there are none."""
    if not isinstance(system, TwoStageSystem):
        return None, []
    if not points:
        return None, ["There are no pictures, as there is no operating point to show them at."]
    if system.num_exits != system.classifier.num_exits:
        return None, ["There are no pictures: the images are too small for all patches."]
    return make_gallery(table, points[0].policy, system.classifier, folder), []


def assemble(
    table: ExitTable,
    system: ExitSystem,
    folder: Path,
    log: RunLog,
    *,
    budgets: Sequence[float] | None = None,
    policies: Mapping[str, ExitPolicy] | None = None,
    plain: Mapping[str, ExitTable] | None = None,
    failures: Sequence[str] = (),
    facts: Mapping[str, str] | None = None,
) -> ReportData:
    """What the report of an evaluation says, but for times and pictures.

    Args:
        table: what was measured.
        system: the system that was.
        folder: of the images.
        log: for progress.
        budgets: mean multiply-adds to fit operating points for; None chooses.
        policies: name -> a policy to measure.
        plain: path -> table of a network to compare with.
        failures: what was left out of the table.
        facts: added to how it was measured.
    """
    notes: list[str] = []
    reason = why_no_curve(table)
    if reason is not None and table.num_exits > 1:
        notes.append(f"There is no budgeted curve: {reason}.")
    curves = curves_of(table, system.name, log)
    points: list[OperatingPoint] = []
    if table.num_exits > 1:
        points, more = operating_points(table, budgets, policies or {})
        notes += more
    networks, more = plain_networks(table, plain or {})
    notes += more
    explanation = getattr(system, "explanation", None)
    if isinstance(system, TwoStageSystem):
        explanation = TWO_STAGE_EXPLANATION
    return ReportData(
        system=system.name,
        data=str(table.metadata.get("data", folder.name)),
        table=table,
        curves=curves,
        points=points,
        plain=networks,
        failures=failures,
        explanation=explanation,
        facts={**_facts(table), **(facts or {})},
        notes=notes,
    )


def _facts(table: ExitTable) -> dict[str, str]:
    about = table.metadata
    facts = {"command": shlex.join(["anchornet", *sys.argv[1:]])}
    words = {
        "model": "model",
        "glance": "network of the glance",
        "focus": "network of the patches",
        "backbone": "network",
        "weights": "weights",
        "image_size": "side of the image, pixels",
        "refinement": "refined",
        "glance_size": "side of the glance, pixels",
        "patch_size": "side of a patch, pixels",
        "criterion": "confidence from the sum of",
    }
    facts |= {words[key]: str(about[key]) for key in words if about.get(key) is not None}
    settings = about.get("options") or {}
    said = [f"{key} {value}" for key, value in settings.items() if value is not None]
    if said:
        facts["settings"] = ", ".join(said)
    if about.get("macs_per_exit_unfolded"):
        facts["multiply-adds before folding"] = ", ".join(
            f"{value / 1e6:.1f} M" for value in about["macs_per_exit_unfolded"]
        )
    if about.get("macs_per_exit_blocks"):
        facts["multiply-adds in whole blocks, as published tables count"] = ", ".join(
            f"{value / 1e6:.1f} M" for value in about["macs_per_exit_blocks"]
        )
    facts["versions"] = (
        f"anchornet_ext {__version__}, torch {torch.__version__}, Python "
        f"{platform.python_version()}"
    )
    return facts


def _same_images(one: ExitTable, other: ExitTable) -> bool:
    if one.image_ids is None or other.image_ids is None:
        return False
    return np.array_equal(one.image_ids, other.image_ids)

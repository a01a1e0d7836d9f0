"""Writes a comparison: one page that needs nothing else, figures, tables and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anchornet_ext._files import write_whole
from anchornet_ext.evaluation import page
from anchornet_ext.evaluation.curves import (
    AnytimeCurve,
    BudgetedCurve,
    Costs,
    anytime,
    cross_fit,
    why_no_curve,
)
from anchornet_ext.evaluation.figure_files import FigureFiles
from anchornet_ext.evaluation.sentences import interval_in_words
from anchornet_ext.evaluation.theme import Theme
from anchornet_ext.evaluation.units import milliseconds, percent, scale_of, three_digits, whole

from . import sentences
from .budgets import Standing, standings, why_no_standings
from .entries import Entry
from .figures import draw_systems

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "report.html"
RESULT = "comparison.json"
ANYTIME = "anytime.csv"
BUDGETED = "budgeted.csv"
STANDINGS = "standings.csv"
_COSTS: tuple[Costs, ...] = ("macs", "milliseconds")
_NAMES = {"macs": "multiply-adds", "milliseconds": "measured time"}


@dataclass(frozen=True)
class Comparison:
    """Everything that a comparison says.

    Attributes:
        entries: the systems.
        exits: of each, what it does when all images leave at one exit.
        curves: budgeted curves of those that have several exits.
        standings: the systems at shared budgets, by kind of cost.
        notes: why something is missing.
    """

    entries: Sequence[Entry]
    exits: Sequence[AnytimeCurve]
    curves: Sequence[BudgetedCurve]
    standings: Mapping[Costs, Sequence[Standing]]
    notes: Sequence[str]


def compare_entries(
    entries: Sequence[Entry],
    budgets: Mapping[Costs, Sequence[float]] | None = None,
    *,
    num_points: int = 40,
    seed: int = 0,
) -> Comparison:
    """Computes a comparison of systems on the same images in one order.

    Args:
        entries: see `entries.same_images`.
        budgets: at which to compare, by kind of cost; what is missing is chosen.
        num_points: of the curves.
        seed: of the halves that thresholds are fitted on.
    """
    curves, notes = [], []
    for entry in entries:
        for costs in _COSTS:
            reason = why_no_curve(entry.table, costs)
            if reason is None:
                made = cross_fit(
                    entry.table, system=entry.name, costs=costs, num_points=num_points, seed=seed
                )
                curves.append(made)
            elif costs == "macs" and entry.table.num_exits > 1:
                notes.append(f"There is no curve of {entry.name}: {reason}.")
    ranked: dict[Costs, Sequence[Standing]] = {}
    reason = why_no_standings(entries)
    if reason is None:
        for costs in _COSTS:
            asked = (budgets or {}).get(costs)
            ranked[costs] = standings(entries, costs, asked, seed=seed)
            notes += sentences.about_unmet(asked or (), ranked[costs], entries, costs)
    else:
        notes.append(f"There is no comparison at budgets: {reason}.")
    exits = [anytime(entry.table, entry.name) for entry in entries]
    return Comparison(entries, exits, curves, ranked, notes)


def write_comparison(folder: Path, found: Comparison, facts: Mapping[str, str]) -> Path:
    """Writes all files into `folder`, which is made if need be, the page last.

    Returns:
        The page's path.

    Raises:
        ImportError: matplotlib is not installed.
    """
    files = FigureFiles(folder / "figures", [f"accuracy_over_{costs}" for costs in _COSTS])
    _write_csv(folder / ANYTIME, anytime_rows(found))
    _write_csv(folder / BUDGETED, budgeted_rows(found))
    _write_csv(folder / STANDINGS, standing_rows(found))
    content = json.dumps(to_json(found, facts), indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(folder / RESULT, f"{content}\n".encode(errors="backslashreplace"))
    sections = [_header(found), _summary(found), _systems(found)]
    for costs in _COSTS:
        sections.append(_cost_section(files, found, costs))
    sections.append(page.section("How this was compared", page.facts(facts)))
    text = page.document(_title(found), [section for section in sections if section])
    files.remove_others()
    write_whole(folder / PAGE, text.encode(errors="backslashreplace"))
    return folder / PAGE


def anytime_rows(found: Comparison) -> list[dict[str, Any]]:
    """One row for each exit of each system."""
    return [
        {
            "system": one.system,
            "exit": t + 1,
            "macs": None if one.macs is None else float(one.macs[t]),
            "milliseconds": None if one.milliseconds is None else float(one.milliseconds[t]),
            "top1": float(one.top1.value[t]),
            "top1_low": float(one.top1.low[t]),
            "top1_high": float(one.top1.high[t]),
        }
        for one in found.exits
        for t in range(one.num_exits)
    ]


def budgeted_rows(found: Comparison) -> list[dict[str, Any]]:
    """One row for each point of each budgeted curve."""
    return [
        {
            "system": curve.system,
            "costs": curve.costs,
            "budget": float(curve.budget[p]),
            "cost": float(curve.cost[p]),
            "top1": float(curve.accuracy.value[p]),
            "top1_low": float(curve.accuracy.low[p]),
            "top1_high": float(curve.accuracy.high[p]),
        }
        for curve in found.curves
        for p in range(len(curve.budget))
    ]


def standing_rows(found: Comparison) -> list[dict[str, Any]]:
    """One row for each system at each shared budget."""
    return [
        {
            "costs": standing.costs,
            "budget": standing.budget,
            "system": score.name,
            "cost": score.cost,
            "top1": float(score.accuracy.value),
            "top1_low": float(score.accuracy.low),
            "top1_high": float(score.accuracy.high),
            "behind": float(score.behind.value),
            "behind_low": float(score.behind.low),
            "behind_high": float(score.behind.high),
            "more_than_chance": score.is_told_apart,
        }
        for several in found.standings.values()
        for standing in several
        for score in standing.scores
    ]


def to_json(found: Comparison, facts: Mapping[str, str]) -> dict[str, Any]:
    """Everything, ready for JSON."""
    return {
        "format": "anchornet_ext comparison",
        "format_version": 1,
        "num_images": found.entries[0].table.num_images,
        "systems": [
            {
                "name": entry.name,
                "evaluation": str(entry.path),
                "kind": entry.table.metadata.get("kind"),
                "checksum": entry.table.metadata.get("checksum"),
                "why_untimed": entry.why_untimed,
            }
            for entry in found.entries
        ],
        "anytime": anytime_rows(found),
        "budgeted": budgeted_rows(found),
        "standings": standing_rows(found),
        "said": said(found),
        "facts": dict(facts),
    }


def said(found: Comparison) -> list[str]:
    """The comparison in sentences."""
    every = [standing for several in found.standings.values() for standing in several]
    lines = [sentences.about_leaders(several) for several in found.standings.values()]
    lines += sentences.about_untimed(found.entries)
    lines += sentences.about_schedules(found.entries)
    lines += sentences.about_varying_costs(found.entries)
    lines.append(sentences.about_chance(found.entries[0].table.num_images, every))
    return [line for line in [*lines, *found.notes] if line]


def _title(found: Comparison) -> str:
    data = found.entries[0].table.metadata.get("data", "images")
    return f"{len(found.entries)} systems on {data}"


def _header(found: Comparison) -> str:
    table = found.entries[0].table
    key = [
        (str(len(found.entries)), "systems"),
        (whole(table.num_images), "images, the same for all"),
        (str(len(table.class_names or ())), "classes"),
    ]
    return f"<header><h1>{escape(_title(found))}</h1>\n{page.key_figures(key)}</header>"


def _summary(found: Comparison) -> str:
    return page.section("In short", page.bullets(said(found)))


def _systems(found: Comparison) -> str:
    """First and last exit of each system."""
    scale = scale_of([float(one.macs[-1]) for one in found.exits if one.macs is not None])
    count = found.entries[0].table.num_images
    rows: list[list[str | tuple[str, str]]] = []
    for one in found.exits:
        cells: list[str | tuple[str, str]] = [(one.system, _exits_in_words(one.num_exits))]
        for step in (0, -1):
            top1 = one.top1[step]
            cells.append((percent(float(top1.value), count), interval_in_words(top1, count)))
            cells.append(
                "" if one.macs is None else three_digits(float(one.macs[step]) / scale.factor)
            )
            time = None if one.milliseconds is None else float(one.milliseconds[step])
            cells.append("not timed" if time is None else milliseconds(time))
        rows.append(cells)
    header = ["", "top-1, first exit", scale.macs, "time", "top-1, last exit", scale.macs, "time"]
    return page.section(
        "The systems",
        page.paragraph(
            "All images leave at the same exit. The smaller numbers are 95 % intervals."
        ),
        page.data_table(header, rows),
    )


def _exits_in_words(count: int) -> str:
    return "1 exit" if count == 1 else f"{count} exits"


def _cost_section(files: FigureFiles, found: Comparison, costs: Costs) -> str:
    known = [one.macs if costs == "macs" else one.milliseconds for one in found.exits]
    if all(values is None for values in known):
        return ""
    names = [entry.name for entry in found.entries]
    several = found.standings.get(costs, ())
    lines = [sentences.about_standing(standing) for standing in several]
    words = (
        f"Top-1 accuracy over {_NAMES[costs]}. Points: all images leave at the same exit. Lines: "
        "images leave when sure enough, with thresholds fitted on one half of the images and "
        "measured on the other."
    )
    table = ""
    if several:
        header = ["", *(sentences.cost_in_words(one.budget, costs) for one in several)]
        rows: list[list[str | tuple[str, str]]] = []
        for entry in names:
            cells: list[str | tuple[str, str]] = [entry]
            for standing in several:
                score = next((one for one in standing.scores if one.name == entry), None)
                if score is None:
                    cells.append("")
                    continue
                place = "behind" if score.is_told_apart else "within chance of the best"
                if score is standing.scores[0]:
                    place = "best"
                cells.append((percent(float(score.accuracy.value)), place))
            rows.append(cells)
        caption = "Top-1 at mean costs that are the same for all systems."
        table = page.data_table(header, rows, caption)

    def draw(theme: Theme) -> Figure:
        return draw_systems(names, found.exits, found.curves, costs=costs, theme=theme)

    figure = files.figure(f"accuracy_over_{costs}", draw, words, words)
    return page.section(f"Accuracy over {_NAMES[costs]}", page.bullets(lines), figure, table)


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode(errors="backslashreplace"))

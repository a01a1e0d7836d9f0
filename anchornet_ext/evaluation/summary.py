"""The figures of an exit table as small files: anytime.csv for spreadsheets, summary.json."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anchornet_ext._files import write_whole
from anchornet_ext.policy.exit_table import ExitTable

from .parts import FAILURES
from .report_data import ReportData
from .sentences import held_out_in_words
from .units import macs, percent

ANYTIME = "anytime.csv"
SUMMARY = "summary.json"


def anytime_rows(table: ExitTable) -> list[dict[str, float]]:
    """One row for each exit where all images leave there (anytime prediction, section 4.1).

    Keys: exit (from 1), macs, milliseconds, top1, top5, mean_confidence; what the table does not
    have is left out. Accuracies are shares from 0 to 1.
    """
    columns: dict[str, NDArray[Any] | None] = {
        "exit": np.arange(1, table.num_exits + 1),
        "macs": table.cost,
        "milliseconds": table.milliseconds,
        "top1": table.correct.mean(axis=0),
        "top5": None if table.top5 is None else table.top5.mean(axis=0),
        "mean_confidence": table.confidence.mean(axis=0, dtype=np.float64),
    }
    known = {name: column.tolist() for name, column in columns.items() if column is not None}
    return [dict(zip(known, row, strict=True)) for row in zip(*known.values(), strict=True)]


def write_summary(out: Path, data: ReportData) -> None:
    """Writes anytime.csv, and summary.json: the metadata, the same rows, and the rest in short."""
    rows = anytime_rows(data.table)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(out / ANYTIME, text.getvalue().encode())
    about = {key: value for key, value in data.table.metadata.items() if key != "class_names"}
    summary = {
        "num_images": data.table.num_images,
        **about,
        "anytime": rows,
        "budgeted": [
            {
                "method": curve.method,
                "unit": curve.costs,
                "held_out": True,
                "fitted_on": curve.num_fitted,
                "splits": curve.splits,
                "mean_accuracy": curve.mean_accuracy,
                "cost": curve.cost.tolist(),
                "accuracy": curve.accuracy.value.tolist(),
            }
            for curve in data.curves
        ],
        "operating_points": [
            {
                "name": point.name,
                "accuracy": float(point.accuracy.value),
                "top5": point.top5,
                "macs": point.macs,
                "share": list(point.share),
                "held_out": point.held_out,
                "policy": point.policy.to_dict(),
            }
            for point in data.points
        ],
        "plain": [
            {
                "name": plain.name,
                "accuracy": plain.correct / plain.num_images,
                "num_images": plain.num_images,
                "macs": plain.macs,
            }
            for plain in data.plain
        ],
    }
    content = json.dumps(summary, indent=2, ensure_ascii=False) + "\n"
    write_whole(out / SUMMARY, content.encode(errors="backslashreplace"))


def said_at_the_end(data: ReportData) -> list[str]:
    """The accuracies in a few lines, for the terminal."""
    costs = data.table.costs()
    lines = [
        f"exit {t}: {percent(float(right))} right at {macs(float(cost))}"
        for t, (right, cost) in enumerate(
            zip(data.table.correct.mean(axis=0), costs, strict=True), start=1
        )
    ]
    lines += [
        f"{point.name}: {percent(float(point.accuracy.value))} right at {macs(point.macs)} on "
        f"average ({held_out_in_words(point)})"
        for point in data.points
    ]
    lines += [
        f"{plain.name}: {percent(plain.correct / plain.num_images)} right at {macs(plain.macs)}"
        for plain in data.plain
    ]
    if data.failures:
        lines.append(f"{len(data.failures)} photos left out, see {FAILURES}")
    return [*lines, *data.notes]

"""The figures of an exit table as small files: anytime.csv for spreadsheets, summary.json."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anchornet_ext._files import write_whole
from anchornet_ext.policy.exit_table import ExitTable

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


def write_summary(out: Path, table: ExitTable, more: Mapping[str, Any]) -> None:
    """Writes anytime.csv, and summary.json: the metadata, the same rows, and `more`."""
    rows = anytime_rows(table)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(out / ANYTIME, text.getvalue().encode())
    about = {key: value for key, value in table.metadata.items() if key != "class_names"}
    summary = {"num_images": table.num_images, **about, "anytime": rows, **more}
    write_whole(out / SUMMARY, (json.dumps(summary, indent=2, ensure_ascii=False) + "\n").encode())

"""What `anchornet predict` prints: a table for people, or JSON lines for programs."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.text import Text

from anchornet_ext.data.crop_geometry import Box, CropGeometry

from .prediction import Prediction, class_label
from .two_stage import TwoStageClassifier


class Report(Protocol):
    """Takes the predictions as they come."""

    def add(
        self, name: str, geometry: CropGeometry, prediction: Prediction, overlay: Path | None
    ) -> None: ...

    def finish(self, failures: int) -> None: ...


def as_json(
    name: str, geometry: CropGeometry, prediction: Prediction, overlay: Path | None
) -> dict[str, Any]:
    """The keys of a JSON line; docs/predict.md describes them."""
    return {
        "photo": name,
        "photo_size": list(geometry.photo_size),
        "label": prediction.top[0].label,
        "class_index": prediction.top[0].index,
        "confidence": prediction.confidence,
        "top": [
            {"label": one.label, "class_index": one.index, "probability": one.probability}
            for one in prediction.top
        ],
        "exit": prediction.exit_step,
        "answer_step": prediction.answer_step,
        "num_exits": prediction.num_exits,
        "steps": [
            {
                "input": number,
                "kind": "glance" if look.box is None else "patch",
                "label": look.label,
                "confidence": look.confidence,
                "box": None if look.box is None else [int(edge) for edge in look.box],
                "photo_box": None
                if look.box is None
                else [round(edge, 2) for edge in geometry.to_photo(look.box)],
            }
            for number, look in enumerate(prediction.looks, start=1)
        ],
        "crop_box": [round(edge, 2) for edge in geometry.crop_box],
        "macs": prediction.macs,
        "full_macs": prediction.full_macs,
        "cost_share": prediction.macs / prediction.full_macs,
        "overlay": None if overlay is None else str(overlay),
    }


class JsonReport:
    """One JSON object a line on stdout, and nothing else."""

    def add(
        self, name: str, geometry: CropGeometry, prediction: Prediction, overlay: Path | None
    ) -> None:
        line = as_json(name, geometry, prediction, overlay)
        print(json.dumps(line, allow_nan=False), flush=True)

    def finish(self, failures: int) -> None:
        """Nothing: what could not be read has been told on stderr."""


class TableReport:
    """A line for each photo and one for each of its patches, coloured on a terminal."""

    def __init__(self, paths: Sequence[Path], model: TwoStageClassifier) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._names = min(max(len(str(path)) for path in paths), 48)
        labels = (len(class_label(model, index)) for index in range(model.num_classes))
        self._labels = min(max(max(labels), 5), 28)
        self._num_exits = model.num_exits
        self._exits: Counter[int] = Counter()
        self._shares: list[float] = []
        self._print(
            Text(
                f"{'photo':<{self._names}}  {'class':<{self._labels}}  {'sure':>7}  "
                f"{'exit':>6}  {'MMACs':>7}  {'of full':>7}",
                "bold",
            )
        )

    def add(
        self, name: str, geometry: CropGeometry, prediction: Prediction, overlay: Path | None
    ) -> None:
        self._exits[prediction.exit_step] += 1
        share = prediction.macs / prediction.full_macs
        self._shares.append(share)
        line = Text(f"{_shortened(name, self._names):<{self._names}}  ")
        best = prediction.top[0]
        line.append(f"{_shortened(best.label, self._labels):<{self._labels}}", "bold green")
        line.append(f"  {_percent(prediction.confidence):>7}  ")
        line.append(f"{prediction.exit_step} of {prediction.num_exits}".rjust(6), "cyan")
        line.append(f"  {prediction.macs / 1e6:>7.1f}  {_percent(share):>7}")
        self._print(line)
        for candidate in prediction.top[1:]:
            label = f"{_shortened(candidate.label, self._labels):<{self._labels}}"
            indent = " " * (self._names + 2)
            self._print(Text(f"{indent}{label}  {_percent(candidate.probability):>7}", "dim"))
        for number, look in enumerate(prediction.looks, start=1):
            what = "glance"
            if look.box is not None:
                what = (
                    f"patch  {_rows_and_columns(look.box)} of the crop, "
                    f"{_rows_and_columns(geometry.to_photo(look.box))} of the photo"
                )
            after = f"{look.label} {_percent(look.confidence)}"
            if number == prediction.answer_step < prediction.exit_step:
                after += "  (the answer: surest here)"
            self._print(Text(f"    input {number}: {what} -> {after}", "dim"))
        if overlay is not None:
            self._print(Text(f"    picture: {overlay}", "dim"))

    def finish(self, failures: int) -> None:
        if self._shares:
            exits = ", ".join(
                f"{self._exits[step]} after input {step}"
                for step in range(1, self._num_exits + 1)
                if self._exits[step]
            )
            count = len(self._shares)
            mean = sum(self._shares) / count
            self._print(
                Text(
                    f"{count} photo{'s' if count > 1 else ''}: {exits}; on average "
                    f"{_percent(mean)} of the full cost",
                    "bold",
                )
            )
        if failures:
            self._print(Text(f"{failures} could not be classified, see above", "bold red"))

    def _print(self, line: Text) -> None:
        self._console.print(line)
        # Through a pipe, too, lines come as the photos are done.
        sys.stdout.flush()


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _rows_and_columns(box: Box) -> str:
    top, left, bottom, right = (round(edge) for edge in box)
    return f"rows {top}-{bottom}, columns {left}-{right}"


def _shortened(text: str, width: int) -> str:
    """The end of a path tells photos apart, so the beginning goes."""
    return text if len(text) <= width else "..." + text[len(text) - width + 3 :]

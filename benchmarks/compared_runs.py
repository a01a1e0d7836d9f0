"""What the scripts that train and compare systems do alike."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from anchornet_ext.training.run_log import write_text


def photos_of(label: Path) -> list[Path]:
    """A class's, in the order of their names."""
    return sorted(path.resolve() for path in label.iterdir())


def link(photos: Iterable[Path], folder: Path) -> None:
    """FOLDER gets links to `photos`, where it has none of an earlier time."""
    folder.mkdir(parents=True, exist_ok=True)
    for photo in photos:
        if not (folder / photo.name).exists():
            os.symlink(photo, folder / photo.name)


def add_cpu_seconds(run: Path, seconds: float) -> None:
    """RUN/cpu_seconds.json has what each part of a training took: another part is over."""
    record = run / "cpu_seconds.json"
    parts = json.loads(record.read_text()) if record.is_file() else []
    write_text(record, json.dumps([*parts, seconds]))

"""A tiny folder of photos whose classes differ in colour, and the command as a user runs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import Command, in_this_process
from PIL import Image

COLOURS = {"ant": (200, 60, 60), "bee": (60, 200, 60), "cat": (60, 60, 200)}


def write_photos(folder: Path, counts: dict[str, int], seed: int = 0) -> None:
    """FOLDER/CLASS/0.png, ...: noise around the class's colour, each of another size."""
    rng = np.random.default_rng(seed)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            shape = (100 + 7 * i % 30, 130 - 5 * i % 40, 3)
            pixels = rng.normal(COLOURS[name], 50, shape).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with 8 and val/ with 3 photos of each of three classes. Not to be changed."""
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder / "train", dict.fromkeys(COLOURS, 8))
    write_photos(folder / "val", dict.fromkeys(COLOURS, 3), seed=1)
    return folder


@pytest.fixture
def anchornet(capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs `anchornet ARGUMENTS` in this process."""
    with in_this_process(capsys) as run:
        yield run

"""A tiny folder of photos whose classes differ in colour, and the command as a user runs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anchornet_ext.cli import main

COLOURS = {"ant": (200, 60, 60), "bee": (60, 200, 60), "cat": (60, 60, 200)}
REPOSITORY = Path(__file__).parents[2]


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


def environment() -> dict[str, str]:
    """For a subprocess that imports the package under test and leaves cores to others."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    returncode: int
    stderr: str


@pytest.fixture
def anchornet(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Outcome]]:
    """Runs `anchornet ARGUMENTS` in this process: importing torch costs more than most tests."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # argparse, on a bad flag
            code = int(stop.code or 0)
        return Outcome(code, capsys.readouterr().err)

    threads = torch.get_num_threads()
    yield run
    torch.set_num_threads(threads)


def command_line(*arguments: object) -> list[str]:
    """`anchornet ARGUMENTS` for a process of its own, with `environment()`."""
    return [sys.executable, "-m", "anchornet_ext.cli", *map(str, arguments)]

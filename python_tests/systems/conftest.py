"""A folder of tiny photos, and a run of every system on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import Command, in_this_process
from PIL import Image
from system_runs import Trained, train_flags

from anchornet_ext import _extension, cli
from anchornet_ext._machine import using_threads
from anchornet_ext.systems import find_system

COLOURS = {"ant": (200, 60, 60), "bee": (60, 200, 60), "cat": (60, 60, 200)}


def write_photos(folder: Path, count: int, seed: int) -> None:
    """FOLDER/CLASS/0.png, ...: coarse noise around the class's colour, all of the CIFAR size."""
    rng = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            pixels = rng.normal(colour, 70, (6, 6, 3)).clip(0, 255).astype(np.uint8)
            photo = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC)
            photo.save(folder / name / f"{i}.png")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with 8 and val/ with 7 photos of each of three classes. Not to be changed."""
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder / "train", 8, seed=0)
    write_photos(folder / "val", 7, seed=1)
    return folder


@pytest.fixture(scope="session")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """Name of a system -> its finished run of two steps. Not to be changed."""
    runs: dict[str, Trained] = {}

    def get(name: str) -> Trained:
        if name == "anchornet" and not _extension.available():
            pytest.skip("the native library is not built")
        if name not in runs:
            system = find_system(name)
            run = tmp_path_factory.mktemp("runs") / name
            with using_threads():
                assert cli.main(train_flags(system, photos, run)) == 0
            runs[name] = Trained(system, run)
        return runs[name]

    return get


@pytest.fixture
def anchornet(capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs `anchornet ARGUMENTS` in this process."""
    with in_this_process(capsys) as run:
        yield run

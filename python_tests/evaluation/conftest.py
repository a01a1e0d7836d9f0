from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Command, in_this_process
from evaluation_cases import save_model, save_photos


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved classifier. Not to be changed."""
    folder = tmp_path_factory.mktemp("model")
    save_model(folder)
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 photos of three of the model's four classes, one of them in a folder. Do not change."""
    folder = tmp_path_factory.mktemp("photos")
    save_photos(folder, {"ant": 9, "cat": 7, "dog": 5})
    (folder / "dog" / "below").mkdir()
    (folder / "ant" / "8.png").rename(folder / "dog" / "below" / "8.png")
    return folder


@pytest.fixture
def evaluate(capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs `anchornet evaluate ARGUMENTS` in this process."""
    with in_this_process(capsys, "evaluate") as run:
        yield run

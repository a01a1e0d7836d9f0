"""What every command says of places it cannot write to and of paths that are empty, before work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from command_line import Command, in_this_process
from PIL import Image

from anchornet_ext.policy.exit_table import ExitTable


@pytest.fixture
def anchornet(capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs `anchornet ARGUMENTS` in this process."""
    with in_this_process(capsys) as run:
        yield run


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """Photos, an exit table, and a file where a folder would have to be."""
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            picture = Image.new("RGB", (40, 40), "red" if name == "ant" else "blue")
            picture.save(tmp_path / "photos" / split / name / "0.png")
    sure = np.random.default_rng(0).random((100, 2)).astype(np.float32)
    ExitTable(sure, sure > 0.3, np.array([1e6, 2e6])).save(tmp_path / "exits.npz")
    (tmp_path / "file").write_text("mine")
    return tmp_path


#: Of each command that writes: what it needs, and the flag that says where.
COMMANDS: dict[str, Callable[[Path], list[object]]] = {
    "train": lambda given: [
        *("train", "--system", "plain", "--backbone", "cifar/resnet8"),
        *("--data", given / "photos", "--crop-size", 32, "--resize-size", 32, "--out"),
    ],
    "evaluate": lambda given: [
        *("evaluate", "--model", "caltech101", "--data", given / "photos" / "val", "--out"),
    ],
    "compare": lambda given: ["compare", given / "exits.npz", given / "exits.npz", "--out"],
    "calibrate": lambda given: ["calibrate", given / "exits.npz", "--budget", "1.5M", "--out"],
    "curve": lambda given: ["calibrate", given / "exits.npz", "--budget", "1.5M", "--curve"],
    "predict": lambda given: ["predict", given / "photos" / "val", "--overlay"],
    "bench": lambda given: ["bench", "operators", "--quick", "--json"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_place_that_cannot_be_written_to_is_said_first(
    given: Path, anchornet: Command, command: str
) -> None:
    words = COMMANDS[command](given)
    done = anchornet(*words, given / "file" / "result")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"anchornet: error: {words[-1]} '{given / 'file' / 'result'}'")
    assert done.stderr.count("\n") == 1
    assert (given / "file").read_text() == "mine"


@pytest.mark.parametrize("command", COMMANDS)
def test_an_empty_path_is_not_this_folder(given: Path, anchornet: Command, command: str) -> None:
    words = COMMANDS[command](given)
    done = anchornet(*words, "")
    assert done.returncode == 2
    assert f"argument {words[-1]}: the path is empty" in done.stderr


def test_a_policy_and_its_curve_are_two_files(given: Path, anchornet: Command) -> None:
    both = given / "both"
    done = anchornet(*COMMANDS["calibrate"](given), both, "--curve", both)
    assert done.returncode == 2
    assert "--out and --curve are the same file" in done.stderr
    assert not both.exists()

"""What every command says of places it cannot write to and of paths that are empty, before work."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Command, command_line, environment, in_this_process
from PIL import Image

from anchornet_ext import __version__, cli, doctor
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


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "bench"])
def test_more_threads_than_there_can_be_are_refused(
    given: Path, anchornet: Command, command: str
) -> None:
    for many in ("100000", "99999999999999"):  # too many to start, and to count
        done = anchornet(*COMMANDS[command](given), given / "out", "--threads", many)
        assert done.returncode == 2
        assert f"argument --threads: '{many}' is more than 1024 threads" in done.stderr


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_lack_of_memory_is_one_line(
    anchornet: Command, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def run(args: object) -> int:
        raise error

    monkeypatch.setattr(doctor, "run", run)
    done = anchornet("doctor")
    assert done.returncode == 2
    assert done.stderr.startswith("anchornet: error: there is not enough memory.")
    assert done.stderr.count("\n") == 1


def test_other_errors_of_the_program_are_not_hidden(
    anchornet: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(args: object) -> int:
        raise RuntimeError("a mistake")

    monkeypatch.setattr(doctor, "run", run)
    with pytest.raises(RuntimeError, match="a mistake"):
        anchornet("doctor")


def test_what_predict_cannot_take_is_said(given: Path, anchornet: Command) -> None:
    """What it names instead is something that it, or the command named beside it, does take."""
    run = given / "run"
    (run / "model").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    other = {"format": "anchornet_ext exit network", "system": "msdnet"}

    def said(folder: Path) -> str:
        done = anchornet("predict", given / "photos", "--model", folder)
        assert done.returncode == 2
        return done.stderr

    (run / "model" / "config.json").write_text(json.dumps(other))
    assert f"a model of the system 'msdnet'; `anchornet evaluate` takes {run / 'model'}" in said(
        run / "model"
    )
    assert f"a run of the system 'msdnet'; `anchornet evaluate` takes {run}\n" in said(run)
    own = {"format": "anchornet_ext two-stage classifier"}
    (run / "model" / "config.json").write_text(json.dumps(own))
    assert f"it is of a run, whose model is in {run / 'model'}\n" in said(run)
    (run / "model" / "config.json").write_text("no JSON")
    assert "two-stage classifier\n" in said(run)
    shutil.rmtree(run / "model")
    (run / "config.json").write_text('{"stages": {}}')
    assert "a run that is not finished; go on with `anchornet train --resume`\n" in said(run)


@pytest.mark.parametrize("command", ["train", "predict"])
def test_an_interrupted_command_says_how_to_go_on_if_it_can(
    given: Path, anchornet: Command, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    module = import_module(cli.COMMANDS[command][0])
    monkeypatch.setattr(module, "run", interrupted)
    stopped = anchornet(*COMMANDS[command](given), given / "out")
    assert stopped.returncode == 130
    assert ("--resume" in stopped.stderr) == (command == "train")


def test_output_that_does_not_fit_is_one_sentence(
    anchornet: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as `print` does, without a name

    monkeypatch.setattr(doctor, "run", run)
    assert anchornet("doctor").stderr == f"anchornet: error: {os.strerror(errno.ENOSPC)}\n"


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """`anchornet doctor --json | head -c 1`."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        command_line("doctor", "--json"), stdout=write, stderr=subprocess.PIPE, env=environment()
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_what_the_terminal_cannot_show_is_escaped(given: Path) -> None:
    """The ± of `calibrate`, say, where the output is to be ASCII."""
    done = subprocess.run(
        command_line("calibrate", given / "exits.npz", "--budget", "1.5M"),
        capture_output=True,
        env={**environment(), "PYTHONIOENCODING": "ascii"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\xb1" in done.stdout


def test_the_version(anchornet: Command) -> None:
    assert anchornet("--version") == (0, f"anchornet_ext {__version__}\n", "")


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "anchornet_ext", "--version"],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert (done.returncode, done.stdout) == (0, f"anchornet_ext {__version__}\n")


def test_a_wrong_flag_is_told_by_the_command_that_it_is_given_to(anchornet: Command) -> None:
    wrong = anchornet("doctor", "--jsn")
    assert wrong.returncode == 2
    assert wrong.stderr.endswith("anchornet doctor: error: unrecognized arguments: --jsn\n")
    assert wrong.stderr.startswith("usage: anchornet doctor")


@pytest.mark.parametrize("command", ["train", "bench"])
def test_the_usage_of_many_flags_does_not_hide_the_error(anchornet: Command, command: str) -> None:
    wrong = anchornet(command, "--no-such-flag")
    assert wrong.returncode == 2
    assert len(wrong.stderr.splitlines()) <= 4

"""The command `anchornet` as a user runs it, for the tests of all its subcommands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from anchornet_ext import cli
from anchornet_ext._machine import using_threads

REPOSITORY = Path(__file__).parents[1]


class Outcome(NamedTuple):
    """What a command left behind."""

    returncode: int
    stdout: str
    stderr: str


Command = Callable[..., Outcome]


@contextmanager
def in_this_process(capsys: pytest.CaptureFixture[str], *subcommand: str) -> Iterator[Command]:
    """Runs `anchornet SUBCOMMAND ARGUMENTS` here: importing torch costs more than most tests."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            code = cli.main([*subcommand, *map(str, arguments)])
        except SystemExit as stop:  # argparse, on a bad flag
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    with using_threads():  # --threads is for the whole process
        yield run


def environment() -> dict[str, str]:
    """For a subprocess that imports the package under test and leaves cores to others."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


def command_line(*arguments: object, launcher: tuple[str, ...] = ()) -> list[str]:
    """`anchornet ARGUMENTS` for a process of its own, or several of torchrun (`launcher`)."""
    return [sys.executable, *launcher, "-m", "anchornet_ext.cli", *map(str, arguments)]


def in_own_process(*arguments: object, launcher: tuple[str, ...] = ()) -> Outcome:
    """Runs `command_line(*arguments)` to its end, with `environment()`."""
    done = subprocess.run(
        command_line(*arguments, launcher=launcher),
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
        timeout=120,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)

"""What the commands' arguments have in common."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

#: More than any machine has cores for.
_MOST_THREADS = 1024


def argument(parse: Callable[[str], T]) -> Callable[[str], T]:
    """`parse` for argparse, which shows the message of its own kind of error only."""

    def parsed(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parsed


def nonempty_path(text: str) -> Path:
    """A path, for argparse. An empty one would be the folder that the command is run in."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(text)


def positive(text: str) -> int:
    """An integer from 1 on, for argparse."""
    return _integer(text, 1)


def count(text: str) -> int:
    """An integer from 0 on, for argparse."""
    return _integer(text, 0)


def threads(text: str) -> int:
    """A number of threads, for argparse: the system ends a program that asks for too many."""
    value = _integer(text, 1)
    if value > _MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text!r} is more than {_MOST_THREADS} threads")
    return value


def seconds(text: str) -> float:
    """A number of seconds from 0 on, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def usable_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _integer(text: str, lowest: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = lowest - 1
    if value < lowest:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {lowest} on")
    return value

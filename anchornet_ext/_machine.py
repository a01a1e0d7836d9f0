"""What this machine is, and how much of it PyTorch uses."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def processor_name() -> str:
    """The CPU's name, as well as it can be found out."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


@contextmanager
def using_threads(count: int | None = None) -> Iterator[None]:
    """Lets PyTorch's operators use `count` threads, or as many as before, until the end; then as
    many as before, whatever happened to the number."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""What this machine is, and what of it PyTorch uses."""

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


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device called `name`; "auto" is CUDA where there is one, else the CPU.

    Raises:
        ValueError: the name is no device that the package runs on, or there is no such one.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name!r} is none of auto, cpu, cuda, cuda:1, ...") from error
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise ValueError(f"--device {name!r}: only the CPU and CUDA devices are supported")
    if not torch.cuda.is_available():
        raise ValueError(f"--device {name!r} was asked for, but torch sees no CUDA device")
    device = torch.device("cuda", local_rank if device.index is None else device.index)
    if (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"--device {name!r}: torch sees {torch.cuda.device_count()} CUDA device(s)"
        )
    return device

"""One process or several (torchrun): who am I, and sums over all of us."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    """This process's place among those that train together.

    Attributes:
        rank: 0 .. size - 1; only 0 writes files.
        size: number of processes.
        device: where this process computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Element-wise sum of `values` over the processes."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        result: list[float] = total.tolist()
        return result

    def barrier(self) -> None:
        """Waits for every process."""
        if self.size > 1:
            dist.barrier()


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


@contextmanager
def join_world(device_name: str) -> Iterator[World]:
    """The world that torchrun's environment variables describe; alone without them.

    Raises:
        ValueError: as `pick_device`.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    device = pick_device(device_name, int(os.environ.get("LOCAL_RANK", "0")))
    if size == 1:
        yield World(0, 1, device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), size, device)
    finally:
        dist.destroy_process_group()

"""One process or several (torchrun): who am I, and sums over all of us."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from anchornet_ext._machine import pick_device


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

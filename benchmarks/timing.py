"""How the benchmarks measure: in turns, and against the memory's own speed of the same moment."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from anchornet_ext.evaluation.timing import Timing, device_of, interleaved_median

__all__ = [
    "Timing",
    "copier",
    "copy_bandwidth",
    "flush_caches",
    "interleaved_median",
    "read_bandwidth",
    "reader",
]

#: Larger than the last-level cache of common processors (an H200's second-level cache included).
CACHE_FLUSH_BYTES = 256 << 20


def flush_caches(device: torch.device | str | None = None) -> Callable[[], None]:
    """A function that pushes everything else out of the caches; for measuring cold reads."""
    buffer = torch.zeros(CACHE_FLUSH_BYTES // 4, device=device_of(device))
    return lambda: (buffer.add_(1), None)[1]


def reader(size: int, device: torch.device | str | None = None) -> Callable[[], Tensor]:
    """A call that reads `size` bytes once and does next to nothing else: a sum of float32.

    Put it among the contenders of `interleaved_median` to compare with the memory's speed of the
    same moment.
    """
    buffer = torch.ones(max(1, size // 4), device=device_of(device))
    return lambda: buffer.sum()


def copier(size: int, device: torch.device | str | None = None) -> Callable[[], Tensor]:
    """A call that reads `size` bytes and writes as many."""
    source = torch.ones(max(1, size // 4), device=device_of(device))
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def read_bandwidth(
    size: int, *, cold: bool = False, repeats: int = 15, device: torch.device | str | None = None
) -> float:
    """Bytes per second at which torch's threads read a buffer of `size` bytes."""
    before = flush_caches(device) if cold else None
    call = reader(size, device)
    timing = interleaved_median({"read": call}, repeats, before=before, device=device)["read"]
    return size / timing.median


def copy_bandwidth(
    size: int, *, cold: bool = False, repeats: int = 15, device: torch.device | str | None = None
) -> float:
    """Bytes per second, read and written together, of copying a buffer of `size` bytes."""
    before = flush_caches(device) if cold else None
    call = copier(size, device)
    timing = interleaved_median({"copy": call}, repeats, before=before, device=device)["copy"]
    return 2 * size / timing.median

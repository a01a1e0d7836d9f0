"""How the benchmarks measure: in turns, and against the memory's own speed of the same moment."""

from __future__ import annotations

import ctypes
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


def mover(
    num_read: int, num_written: int, device: torch.device | str | None = None
) -> Callable[[], Tensor]:
    """A call that reads and writes so many bytes, into a new tensor, as operators do."""
    source = torch.ones(max(4, num_read), dtype=torch.uint8, device=device_of(device))
    both = min(len(source), num_written)
    rest = source[both:][: (len(source) - both) // 4 * 4].clone().view(torch.float32)

    def move() -> Tensor:
        target = torch.empty(num_written, dtype=torch.uint8, device=source.device)
        target[:both].copy_(source[:both])
        if num_written > both:
            target[both:].fill_(1)
        elif len(rest):
            rest.sum()
        return target

    return move


def keep_freed_memory() -> None:
    """Keep what is freed, as a program does that works on batch after batch.

    By default the C library gives large blocks back to the system, and whoever gets them next takes
    a page fault for every 4096 bytes of them. On a virtual machine a fault was seen to take 3 us,
    ten times as long as to write the page; and who takes them depends on what was freed before.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        m_trim_threshold, m_mmap_threshold = -1, -3
        libc.mallopt(m_mmap_threshold, 32 << 20)
        libc.mallopt(m_trim_threshold, (1 << 31) - 1)


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

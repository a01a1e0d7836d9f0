"""How the benchmarks measure: interleaved repetitions, medians, and the memory's own speed.

On a machine that others use as well, two things measured one after the other differ because the
machine changed in between. So all contenders take turns, in a new order each round, and what is
reported is the ratio of medians of one run.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

#: Larger than the last-level cache of common processors (an H200's second-level cache included).
CACHE_FLUSH_BYTES = 256 << 20


class Timing(NamedTuple):
    """Seconds of one call: the median, and the quartiles around it."""

    median: float
    low: float
    high: float


def device_of(device: torch.device | str | None) -> torch.device:
    return torch.device("cpu" if device is None else device)


def flush_caches(device: torch.device | str | None = None) -> Callable[[], None]:
    """A function that pushes everything else out of the caches; for measuring cold reads."""
    buffer = torch.zeros(CACHE_FLUSH_BYTES // 4, device=device_of(device))
    return lambda: (buffer.add_(1), None)[1]


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock_for(device: torch.device) -> Callable[[], float]:
    """What `interleaved_median` measures with on this device and with this number of threads."""
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.thread_time if alone else time.perf_counter


def _calls_per_sample(
    call: Callable[[], object], device: torch.device, sample: float, clock: Callable[[], float]
) -> int:
    """How many calls make a sample long enough for the clock."""
    calls = 1
    while True:
        start = clock()
        for _ in range(calls):
            call()
        _wait_for(device)
        elapsed = clock() - start
        if elapsed >= sample / 4:
            return max(1, round(calls * sample / elapsed))
        calls *= 4


def interleaved_median(
    contenders: Mapping[str, Callable[[], object]],
    repeats: int = 15,
    warmup: int = 2,
    *,
    sample: float = 2e-3,
    before: Callable[[], object] | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    clock: Callable[[], float] | None = None,
) -> dict[str, Timing]:
    """Time `contenders` in turns.

    Args:
        contenders: name to the call that is timed.
        repeats: rounds; each contributes one sample of every contender, in random order.
        warmup: untimed calls of each contender at the start.
        sample: seconds a sample should take; short calls are repeated within it, back to back, so
            that their data is warm.
        before: called, untimed, before every sample, which is then a single call: pass
            `flush_caches()` to measure with cold caches.
        device: where the contenders work; a CUDA device is waited for at both ends of a sample.
        seed: of the order.
        clock: seconds since some moment. Unless given, wall-clock time, except where a single
            thread of the CPU does the work: then the time that this thread had a processor, which
            other processes disturb much less.

    Returns:
        Name to seconds per call.
    """
    device = device_of(device)
    clock = clock or clock_for(device)
    for call in contenders.values():
        for _ in range(warmup):
            call()
    _wait_for(device)
    calls = {
        name: 1 if before is not None else _calls_per_sample(call, device, sample, clock)
        for name, call in contenders.items()
    }
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    shuffle = random.Random(seed).shuffle
    for _ in range(repeats):
        shuffle(order)
        for name in order:
            call = contenders[name]
            if before is not None:
                before()
            _wait_for(device)
            start = clock()
            for _ in range(calls[name]):
                call()
            _wait_for(device)
            samples[name].append((clock() - start) / calls[name])
    return {name: _timing(values) for name, values in samples.items()}


def _timing(values: list[float]) -> Timing:
    if len(values) < 2:
        return Timing(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(median, low, high)


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

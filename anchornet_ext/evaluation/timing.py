"""How time is measured: interleaved repetitions, medians and quartiles.

On a machine that others use as well, two things measured one after the other differ because the
machine changed in between. So all contenders take turns, in a new order each round, and what is
compared is the medians of one run.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch


class Timing(NamedTuple):
    """Seconds of one call: the median, and the quartiles around it."""

    median: float
    low: float
    high: float


def device_of(device: torch.device | str | None) -> torch.device:
    return torch.device("cpu" if device is None else device)


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

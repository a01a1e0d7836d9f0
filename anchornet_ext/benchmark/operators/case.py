"""What every case of an operator has: its settings' order, and the reference to compare with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch

from ..harness import Case, Contenders, Options, Setting, Work
from .setting import batches_and_caches, wanted

SUITE = "operators"


def operator_case(
    operator: str,
    settings: Mapping[str, Setting],
    build: Callable[[], Contenders],
    *,
    batch: int,
    cold: bool,
    work: Work,
    over: Sequence[str],
    facts: Mapping[str, Any] | None = None,
    mode: Callable[[], AbstractContextManager[Any]] = torch.inference_mode,
) -> Case:
    """One case.

    Args:
        settings: those beside the operator, the batch and the caches.
        over: contenders beside the reference.
    """
    return Case(
        suite=SUITE,
        settings={
            "operator": operator,
            "batch": batch,
            **settings,
            "caches": "cold" if cold else "warm",
        },
        build=build,
        batch=batch,
        work=work,
        over=("reference", *over),
        facts=facts or {},
        cold=cold,
        mode=mode,
    )


def network_cases(
    options: Options,
    operator: str,
    size: int,
    build: Callable[[int], Contenders],
    *,
    read: int,
    weights: int,
    macs: int,
    settings: Mapping[str, Setting] | None = None,
    mode: Callable[[], AbstractContextManager[Any]] = torch.inference_mode,
) -> Iterator[Case]:
    """For all batches, the cases of an operator that runs a part of a network.

    Such operators are for CPUs, float32 and channels_last, and are compared with the modules.

    Args:
        build: makes the contenders of a batch.
        read, macs: numbers and multiply-adds of an image.
        weights: numbers.
    """
    if options.device.type != "cpu" or not wanted(options, torch.float32):
        return
    for batch, cold in batches_and_caches(options, (1, 8, 32)):
        yield operator_case(
            operator,
            {**(settings or {}), "size": size, "dtype": "float32", "layout": "NHWC"},
            partial(build, batch),
            batch=batch,
            cold=cold,
            work=Work(read=4 * (batch * read + weights), macs=batch * macs),
            facts={"macs": macs},
            over=("modules",),
            mode=mode,
        )

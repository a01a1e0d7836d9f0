"""Cases of `exit_step`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from anchornet_ext import ops, reference

from ..harness import Case, Contenders, Options, Work
from .case import operator_case
from .setting import NUM_CLASSES, OURS, batches_and_caches, floats, name_of

_THRESHOLD = 0.5


def cases(options: Options) -> Iterator[Case]:
    for batch, cold in batches_and_caches(options, (1, 64, 1000)):
        for dtype in floats(options):
            # The running sums are float32 in any case.
            sums, logits = batch * NUM_CLASSES * 4, batch * NUM_CLASSES * dtype.itemsize
            yield operator_case(
                "exit_step",
                {"classes": NUM_CLASSES, "dtype": name_of(dtype)},
                partial(_build, batch, dtype, options.device),
                batch=batch,
                cold=cold,
                work=Work(read=sums + logits, written=sums),
                over=("usual code",),
            )


def _build(batch: int, dtype: torch.dtype, device: torch.device) -> Contenders:
    # So small that thousands of calls leave the sums as they are: the softmax of grown ones would
    # have denormal numbers, which processors are slow with.
    logits = (1e-6 * torch.randn(batch, NUM_CLASSES, device=device)).to(dtype)
    active = torch.arange(batch, device=device)

    start = torch.randn(batch, NUM_CLASSES, device=device)

    def sums() -> Tensor:
        return start.clone()

    own, specified, usual = sums(), sums(), sums()

    def usual_code() -> tuple[Tensor, Tensor, Tensor]:
        usual[active] += logits
        confidence, prediction = usual[active].softmax(dim=1).max(dim=1)
        return confidence, prediction, active[confidence <= _THRESHOLD]

    return {
        OURS: lambda: ops.exit_step(own, logits, active, _THRESHOLD),
        "reference": lambda: reference.exit_step(specified, logits, active, _THRESHOLD),
        "usual code": usual_code,
    }

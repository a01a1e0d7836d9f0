"""Specification of `anchornet_ext.ops.exit_step`: one turn of Algorithm 1's loop for a batch."""

from __future__ import annotations

import torch
from torch import Tensor


def exit_step(
    running: Tensor,
    logits: Tensor,
    active: Tensor,
    threshold: float | Tensor,
    step: int | Tensor = 1,
    criterion: str = "logits",
    temperature: float | Tensor = 1.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Adds `logits` (A, n) to rows `active` (A) of `running` (N, n) in place; decides who stays.

    criterion "logits": confidence = max softmax(running / temperature). "probabilities":
    softmax(logits / temperature) is added instead and confidence = max(running) / step. An image
    leaves when confidence > threshold (NaN never leaves).

    Half-precision `running` is added up in float32; confidence, which is float32 then, and
    prediction are those of the rounded rows that end up in `running`.

    Returns confidence (A), prediction (A) int64, next_active (A) int64 with the images that stay in
    their order first and -1 behind them, and num_active () int64.
    """
    accumulate = torch.promote_types(running.dtype, torch.float32)
    new = logits.to(accumulate)
    divisor = torch.as_tensor(temperature, dtype=accumulate, device=new.device).reshape(-1, 1)
    if criterion == "probabilities":
        new = _softmax(new, divisor)
    running[active] = (running[active].to(accumulate) + new).to(running.dtype)
    total = running[active].to(accumulate)
    if criterion == "probabilities":
        count = torch.as_tensor(step, dtype=accumulate, device=total.device)
        confidence = total.amax(dim=1) / count
    else:
        confidence = _softmax(total, divisor).amax(dim=1)
    prediction = total.argmax(dim=1)
    limit = torch.as_tensor(threshold, dtype=accumulate, device=total.device)
    stay = active[~(confidence > limit)]
    next_active = torch.full_like(active, -1)
    next_active[: len(stay)] = stay
    return confidence, prediction, next_active, torch.tensor(len(stay), device=active.device)


def _softmax(logits: Tensor, temperature: Tensor) -> Tensor:
    """softmax(logits / temperature) over the classes (A, n), also where that overflows."""
    top = logits.amax(dim=1, keepdim=True)
    return ((logits - top) / temperature).softmax(dim=1)

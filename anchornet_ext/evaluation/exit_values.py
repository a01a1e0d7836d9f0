"""What an exit table holds of a batch, from the logits at each exit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anchornet_ext.ops import exit_step

#: The temperatures of an exit table's grid: 17 from 1/4 to 4, evenly spaced in their logarithm.
TEMPERATURES: tuple[float, ...] = tuple(2.0 ** (i / 4) for i in range(-8, 9))

Values = dict[str, NDArray[Any]]


def exit_values(logits: Tensor, labels: Tensor, temperatures: Sequence[float] = ()) -> Values:
    """Confidence, prediction and the rest for B images at T exits.

    Confidence and prediction come from `exit_step`, the operator that decides in the running
    system, so that thresholds mean the same there and in the table.

    Args:
        logits: (T, B, n) float32, see `ExitSystem.anytime_logits`.
        labels: (B,) int64, on the device of `logits`.
        temperatures: G of them for the grid; none: without it.

    Returns:
        confidence (B, T) float32, prediction (B, T) int32, top5 (B, T) bool, and with G > 0
        scaled_confidence (G, B, T) and scaled_nll (G, B, T), float32.
    """
    confidence, prediction, top5 = [], [], []
    scaled_confidence, scaled_nll = [], []
    label_column = labels[:, None]
    for z in logits:  # (B, n) of each exit
        sure, best = _decide(z)
        confidence.append(sure)
        prediction.append(best)
        # Counting who is strictly ahead lets equal classes share a rank: a right answer is always
        # among the first five, whichever of equal ones a sort would put first.
        own = z.gather(1, label_column)  # (B, 1)
        top5.append((z > own).sum(dim=1) < 5)
        for temperature in temperatures:
            scaled_confidence.append(_decide(z, temperature)[0])
            # The shift by the maximum before the division keeps large logits from overflowing.
            shifted = (z - z.amax(dim=1, keepdim=True)) / temperature
            nll = shifted.logsumexp(dim=1) - shifted.gather(1, label_column)[:, 0]
            scaled_nll.append(nll.clamp(min=0))
    values = {
        "confidence": torch.stack(confidence, dim=1),
        "prediction": torch.stack(prediction, dim=1).int(),
        "top5": torch.stack(top5, dim=1),
    }
    if temperatures:
        grid = (len(logits), len(temperatures), len(labels))
        for name, parts in (("scaled_confidence", scaled_confidence), ("scaled_nll", scaled_nll)):
            # (T, G, B) as collected -> (G, B, T)
            values[name] = torch.stack(parts).reshape(grid).permute(1, 2, 0)
    return {name: np.ascontiguousarray(value.cpu().numpy()) for name, value in values.items()}


def _decide(logits: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Confidence and class of each row, as the running system computes them."""
    everyone = torch.arange(len(logits), device=logits.device)
    # One input that says all that is known: a sum of one term.
    step = exit_step(torch.zeros_like(logits), logits, everyone, 2.0, temperature=temperature)
    return step.confidence, step.prediction

"""What SAR's training changes as it goes on: temperature, target and the loss that holds to it.

Progress is the fraction of the training that is done, in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

#: The target goes down in this many steps, the last of them in the middle of training (appendix B).
TARGET_STEPS = 3


def temperature(progress: float, start: float = 1.0, end: float = 0.01) -> float:
    """The temperature tau of Eq. 9: from `start` to `end`, by the same factor in equal times.

    Raises:
        ValueError: progress outside of [0, 1], or a temperature that is not positive.
    """
    _check_fraction("progress", progress)
    if not (0 < start < math.inf and 0 < end < math.inf):
        raise ValueError(f"temperatures must be positive, got {start} and {end}")
    # Not by powers of end / start: at both ends it should be exactly what was asked for.
    return float(start ** (1 - progress) * end**progress)


def target_rate(progress: float, target: float) -> float:
    """The target t of Eq. 10: 1 at first, `target` from the middle of training on.

    It goes down in three equal steps (appendix B), here after a sixth, a third and a half of the
    training, so that no region is given up before the network has learnt what is in it.

    Raises:
        ValueError: progress or target outside of [0, 1].
    """
    _check_fraction("progress", progress)
    _check_fraction("target", target)
    # The small number: a third of 6 epochs may be 0.33333333333333331.
    steps = min(TARGET_STEPS, math.floor(2 * TARGET_STEPS * progress + 1e-9))
    return target if steps == TARGET_STEPS else 1 - (1 - target) * steps / TARGET_STEPS


def refinement_loss(rates: Sequence[Tensor], target: float) -> Tensor:
    """Eq. 10: how far the mean activation of each block over the batch is from the target.

    Images may refine more or less than others; the batch as a whole is held to the target.

    Args:
        rates: of each of the N blocks, (B,) activation rates in [0, 1] (Eq. 7).
        target: t.

    Returns:
        () the mean over the blocks of (mean rate - t)^2. Weighted by lambda it is added to the
        classification loss: 1 on CIFAR, 0.5 on ImageNet.

    Raises:
        ValueError: there are no blocks, or the target is outside of [0, 1].
    """
    _check_fraction("target", target)
    if not rates:
        raise ValueError("rates must hold the activation of at least one block, got none")
    means = torch.stack([rate.float().mean() for rate in rates])  # (N,)
    return (means - target).square().mean()


def _check_fraction(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")

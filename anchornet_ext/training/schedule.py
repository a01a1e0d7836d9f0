"""The learning rate as a function of how far training is: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from .config import StageConfig


def learning_rate(config: StageConfig, epoch: float) -> float:
    """The learning rate after `epoch` epochs (fractions count) out of `config.epochs`.

    The warm-up rises linearly from 1 % of `lr`; "step" multiplies by gamma at each milestone, a
    percentage of all epochs; "cosine" falls over the epochs that the warm-up leaves.
    """
    if epoch < config.warmup_epochs:
        return config.lr * (0.01 + 0.99 * epoch / config.warmup_epochs)
    if config.schedule == "step":
        # A milestone is where an epoch begins: 30 % of 5 epochs is epoch 2, not 1.5.
        passed = sum(epoch >= round(m / 100 * config.epochs) for m in config.milestones)
        return config.lr * config.gamma**passed
    if config.schedule == "cosine":
        length = max(config.epochs - config.warmup_epochs, 1e-9)
        done = min(1.0, (epoch - config.warmup_epochs) / length)
        return config.min_lr + (config.lr - config.min_lr) * 0.5 * (1 + math.cos(math.pi * done))
    return config.lr

"""An exponential moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class WeightAverage:
    """Keeps average <- d * average + (1 - d) * weights, with d = min(decay, (1 + n) / (10 + n)).

    The young average forgets faster, or the random initial weights would stay in it for
    1 / (1 - decay) steps. Floating-point buffers (the statistics of batch norm) are averaged as
    well, so that they fit the averaged weights; integer ones are copied.

    Args:
        module: the network; it is copied to `self.module`.
        decay: within [0, 1).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Takes in the weights of `module` after an optimiser step."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages: list[Tensor] = []
        values: list[Tensor] = []
        current = module.state_dict()
        for name, average in self.module.state_dict().items():
            if average.is_floating_point():
                averages.append(average)
                values.append(current[name])
            else:
                average.copy_(current[name])
        torch._foreach_lerp_(averages, values, 1 - decay)

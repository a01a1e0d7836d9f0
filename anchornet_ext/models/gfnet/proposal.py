"""GFNet's patch proposal network pi, with the critic that its training needs (Fig. 3)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

#: Channels that the map is reduced to, where it is, and units of the first layer where it is not.
_REDUCED, _WIDE = 32, 2048


class Proposal(NamedTuple):
    """What the network says about where to look next."""

    mean: Tensor
    """(B, 2) in [0, 1]: (row, column) of the patch, as shares of the room it has."""
    value: Tensor
    """(B,): the reward that is expected from here on."""
    hidden: Tensor
    """(B, H): what it remembers."""


class ProposalNetwork(nn.Module):
    """A recurrent actor and critic that share all but their last layers (appendix A.1).

    Args:
        map_size: (C, h, w) of the encoders' maps.
        conv: reduce the map to 32 channels, then one layer; else two layers on the whole map.
        hidden: H, units of the GRU.
    """

    def __init__(self, map_size: tuple[int, int, int], conv: bool, hidden: int) -> None:
        super().__init__()
        channels, height, width = map_size
        layers: list[nn.Module]
        # The order of the layers is that of the released files.
        if conv:
            layers = [nn.Conv2d(channels, _REDUCED, 1, bias=False), nn.ReLU(), nn.Flatten()]
            layers += [nn.Linear(_REDUCED * height * width, hidden), nn.ReLU()]
            self.state_encoder = nn.Sequential(*layers)
        else:
            layers = [nn.Linear(channels * height * width, _WIDE), nn.ReLU()]
            layers += [nn.Linear(_WIDE, hidden), nn.ReLU()]
            self.state_encoder = nn.Sequential(*layers)
        self._conv = conv
        self.gru = nn.GRU(hidden, hidden)
        self.actor = nn.Sequential(nn.Linear(hidden, 2), nn.Sigmoid())
        self.critic = nn.Sequential(nn.Linear(hidden, 1))

    def forward(self, features: Tensor, hidden: Tensor | None) -> Proposal:
        """Where to look after one more input.

        Args:
            features: (B, C, h, w), the map of the last input.
            hidden: (B, H) of the last proposal; None after the first input.
        """
        if not self._conv:
            features = features.flatten(1)  # in the order C, h, w whatever the memory format
        state = self.state_encoder(features)  # (B, H)
        _, new = self.gru(state[None], None if hidden is None else hidden[None])
        return Proposal(self.actor(new[0]), self.critic(new[0])[:, 0], new[0])


def log_probability(action: Tensor, mean: Tensor, std: float) -> Tensor:
    """(B,) log density of actions (B, 2) under independent normals around `mean` (B, 2)."""
    squared = ((action - mean) / std).square().sum(dim=1)
    return -0.5 * squared - 2 * math.log(std) - math.log(2 * math.pi)


def entropy(std: float) -> float:
    """Of the two independent normals: a constant, as the paper fixes their spread."""
    return 1 + math.log(2 * math.pi) + 2 * math.log(std)


def places(action: Tensor, image_size: tuple[int, int], patch_size: int) -> Tensor:
    """(B, 2) int64 top left pixels for actions (B, 2): floor(a * (S - P)), a cut to [0, 1]."""
    room = action.new_tensor([side - patch_size for side in image_size])
    return (action.clamp(0, 1) * room).floor().to(torch.int64)

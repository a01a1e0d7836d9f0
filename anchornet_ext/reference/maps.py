"""A convolution of whole maps with what follows it, by torch's own."""

from __future__ import annotations

import torch
from torch import Tensor

ACTIVATIONS = ("none", "relu")


def convolve_maps(
    maps: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    add: Tensor | None = None,
    activation: int = 0,
) -> Tensor:
    """``activation(convolution + bias + add)``, (B, O, H', W') of maps (B, C, H, W).

    Args:
        weight: (O, C, k, l), not packed.
        activation: index into `ACTIVATIONS`.
    """
    out = torch.nn.functional.conv2d(maps, weight, bias, stride, padding, dilation)
    if add is not None:
        out = out + add
    return out.relu() if activation else out

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

    In bfloat16 all of it is computed in float32 and rounded once.

    Args:
        weight: (O, C, k, l), not packed.
        activation: index into `ACTIVATIONS`.
    """
    if maps.dtype == torch.bfloat16:
        biases, added = (None if value is None else value.float() for value in (bias, add))
        wide = convolve_maps(
            maps.float(), weight.float(), biases, stride, padding, dilation, added, activation
        )
        return wide.bfloat16()
    out = torch.nn.functional.conv2d(maps, weight, bias, stride, padding, dilation)
    if add is not None:
        out = out + add
    return out.relu() if activation else out

"""Chains of MBConv blocks with random weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from anchornet_ext import ops

Chain = tuple[Tensor, list[ops.MBConvBlock]]


def make_block(
    generator: torch.Generator,
    channels: int,
    expanded: int = 20,
    squeezed: int = 3,
    out: int = 24,
    kernel: int = 1,
    stride: int = 1,
    depthwise_stride: int = 1,
) -> ops.MBConvBlock:
    """Weights that keep the size of the values about the same."""

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / math.prod(shape[1:]) ** 0.5

    return ops.MBConvBlock(
        draw(expanded, channels, kernel, kernel),
        draw(expanded),
        draw(expanded, 1, 3, 3),
        draw(expanded),
        draw(squeezed, expanded),
        draw(squeezed),
        draw(expanded, squeezed),
        draw(expanded),
        draw(out, expanded, 1, 1),
        draw(out),
        stride,
        depthwise_stride,
    )


def small_chain(seed: int = 0) -> Chain:
    generator = torch.Generator().manual_seed(seed)
    blocks = [
        make_block(generator, 3, kernel=3, stride=2, depthwise_stride=2),
        make_block(generator, 24, expanded=50),
    ]
    return torch.randn(3, 3, 40, 37, generator=generator), blocks


def chains() -> list[Chain]:
    """Of channels that fill vectors and that do not, in both layouts."""
    generator = torch.Generator().manual_seed(5)
    wide = [
        make_block(generator, 3, 16, 4, 16, kernel=3, stride=2, depthwise_stride=2),
        make_block(generator, 16, 96, 6, 24),
        make_block(generator, 24, 144, 24, 24),
    ]
    images = torch.randn(2, 3, 70, 61, generator=generator)
    last = images.contiguous(memory_format=torch.channels_last)
    return [small_chain(2), (images, wide), (last, wide)]

"""Whether a refinement branch runs on its selected cells or on whole masked maps.

Cells take time in proportion to how many there are, maps always the same; so there is a share of
selected cells above which maps are faster. It depends on the convolutions: those that mix all
channels of a group have a kernel for cells, others copy each cell with its halo.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .blocks import Block, Layer
from .grid import Grid

Execution = Literal["auto", "cells", "maps"]

#: What the convolutions of a branch are like: 3x3 that mix all channels of a group; with 1x1 beside
#: them; 3x3 that mix some of them (ResNeXt's); depthwise.
Kind = Literal["basic", "bottleneck", "grouped", "depthwise"]

#: The largest share of the cells at which cells are the faster, as measured in float32 with
#: AVX-512 on one thread: for up to three images, and for more. (docs/sar.md)
_LARGEST_SHARE: dict[Kind, tuple[float, float]] = {
    "basic": (0.75, 1.0),
    "bottleneck": (1.0, 1.0),
    "grouped": (0.45, 0.65),
}
_FEW_IMAGES = 3
#: Of depthwise convolutions it grows with the batch's pixels: the maps leave the caches.
_DEPTHWISE_PIXELS, _DEPTHWISE_SHARE, _SHARE_PER_DOUBLING = 3136, 0.15, 0.11


def kind_of(blocks: Sequence[Block], groups: int) -> Kind:
    """Of the refinement blocks of a module with `groups` channel groups."""
    layers = [layer for block in blocks for layer in block.layers if isinstance(layer, Layer)]
    spatial = [layer.conv for layer in layers if layer.kernel > 1]
    if any(conv.groups > groups and conv.groups == conv.in_channels for conv in spatial):
        return "depthwise"
    if any(conv.groups > groups for conv in spatial):
        return "grouped"
    return "basic" if len(spatial) == len(layers) else "bottleneck"


def largest_share(kind: Kind, images: int, grid: Grid) -> float:
    """The share of the cells, in [0, 1], up to which cells are expected to be the faster.

    Args:
        images: in the batch.
        grid: of each map.
    """
    if kind != "depthwise":
        return _LARGEST_SHARE[kind][images > _FEW_IMAGES]
    doublings = math.log2(max(1, images * grid.height * grid.width) / _DEPTHWISE_PIXELS)
    return min(1.0, max(0.0, _DEPTHWISE_SHARE + _SHARE_PER_DOUBLING * doublings))


def runs_on_maps(kind: Kind, x: Tensor, masks: Tensor, grid: Grid) -> bool:
    """Whether whole maps are expected to be faster for these masks.

    Only the CPU was measured. There oneDNN has kernels for maps in half precision, and for cells
    there are none.

    Args:
        kind: of the branch.
        x: (B, C, H, W), its input.
        masks: (L, B, G, rows, columns), zero where nothing is refined.
        grid: of the map.
    """
    if not x.is_cpu or x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return False
    limit = 0.0 if x.dtype != torch.float32 else largest_share(kind, len(x), grid)
    if limit >= 1:
        return False
    return int(masks.count_nonzero()) > limit * masks.numel()

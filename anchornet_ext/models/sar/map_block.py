"""A refinement block that runs on whole masked maps, for inference."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from anchornet_ext.models.packed_convolutions import pack_convolutions

from .blocks import Block, Layer, activate


class MapBlock(nn.Module):
    """What `blocks.Block` gives for a masked map, its batch norms folded, in fewer passes over it.

    Weights are in channels_last and, on the CPU, in the kernels' own order.
    """

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = copy.deepcopy(block).eval().requires_grad_(False)
        self.block.to(memory_format=torch.channels_last)
        pack_convolutions(self.block)

    def run(self, x: Tensor, pixels: Tensor) -> Tensor:
        """The block's map (B, C', H, W), zero where nothing is selected.

        Args:
            x: (B, C, H, W); kept.
            pixels: (B, G, H, W), the mask, in the dtype of x.
        """
        x = _shares(x, pixels).mul(pixels[:, :, None]).flatten(1, 2)
        y = x
        for n, layer in enumerate(self.block.layers):
            assert isinstance(layer, Layer)
            if n and layer.kernel > 1:
                _mask_in_place(y, pixels)
            y = layer(y)
        if self.block.shortcut is not None:
            y += self.block.shortcut(x)
        elif self.block.has_identity:
            y += x
        return _mask_in_place(activate(y, self.block.activation), pixels)


def _shares(x: Tensor, pixels: Tensor) -> Tensor:
    """(B, C, H, W) as (B, G, C / G, H, W)."""
    batch, groups, height, width = pixels.shape
    return x.view(batch, groups, x.shape[1] // groups, height, width)


def _mask_in_place(x: Tensor, pixels: Tensor) -> Tensor:
    _shares(x, pixels).mul_(pixels[:, :, None])
    return x

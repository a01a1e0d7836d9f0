"""What a SAR network costs: for a given activation, and for an actual image by its masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from anchornet_ext._meta import meta_images, meta_twin
from anchornet_ext.models.macs import count_macs

from .blocks import Block
from .grid import Grid
from .module import SARModule
from .network import SARNetwork


@dataclass(frozen=True)
class SARCost:
    """Multiply-adds of one image of a certain size, as `count_macs` counts them.

    Attributes:
        fixed: of all that runs whatever the masks say.
        per_cell: for each module, of each of its L blocks, one cell of one channel group. A cell
            that reaches beyond the map counts whole, because it is computed whole. There is no
            halo in it: what a cell reads of its neighbours they have computed themselves.
        cells: of each module, G rows columns: as many as there are at most.
    """

    fixed: int
    per_cell: tuple[tuple[int, ...], ...]
    cells: tuple[int, ...]

    def at(self, activation: float) -> float:
        """With this fraction of the cells refined in every block (section III-B).

        Raises:
            ValueError: activation outside of [0, 1].
        """
        if not 0 <= activation <= 1:
            raise ValueError(f"activation must be in [0, 1], got {activation}")
        refined = sum(
            sum(blocks) * cells for blocks, cells in zip(self.per_cell, self.cells, strict=True)
        )
        return self.fixed + activation * refined

    def of_masks(self, masks: Sequence[Tensor]) -> Tensor:
        """Of the images that these masks were made of.

        Args:
            masks: of each module, (L, B, G, rows, columns), zero where nothing is refined.

        Returns:
            (B,) int64, on the device of the masks.

        Raises:
            ValueError: masks of another network or of another size of image.
        """
        if len(masks) != len(self.per_cell):
            raise ValueError(f"expected masks of {len(self.per_cell)} modules, got {len(masks)}")
        total = torch.full((masks[0].shape[1],), self.fixed, device=masks[0].device)
        for mask, blocks, cells in zip(masks, self.per_cell, self.cells, strict=True):
            if mask.shape[0] != len(blocks) or mask[0, :1].numel() not in (0, cells):
                raise ValueError(
                    f"expected masks of {len(blocks)} blocks and {cells} cells, got "
                    f"{tuple(mask.shape)}"
                )
            active = (mask != 0).sum((2, 3, 4))  # (L, B)
            weights = torch.tensor(blocks, device=mask.device)
            total = total + (active * weights[:, None]).sum(0)
        return total


def sar_cost(network: SARNetwork, image_size: tuple[int, int]) -> SARCost:
    """The cost of one image (H, W) through `network`.

    Raises:
        ValueError: the network does not take images of that size.
    """
    dense = count_macs(network, (3, *image_size))
    grids = _grids(network, image_size)
    per_cell, cells = [], []
    for module, grid in zip(_modules(network), grids, strict=True):
        groups = module.options.groups
        weights = [_weights(block) for block in module.refine]
        dense -= sum(weights) * grid.height * grid.width
        per_cell.append(tuple(count // groups * grid.pixels for count in weights))
        cells.append(groups * grid.rows * grid.columns)
    return SARCost(dense, tuple(per_cell), tuple(cells))


def _modules(network: nn.Module) -> list[SARModule]:
    return [module for module in network.modules() if isinstance(module, SARModule)]


def _weights(block: nn.Module) -> int:
    """Weights of a block's convolutions: its multiply-adds per pixel of all groups."""
    assert isinstance(block, Block)
    return sum(conv.weight.numel() for conv in block.modules() if isinstance(conv, nn.Conv2d))


def _grids(network: SARNetwork, image_size: tuple[int, int]) -> list[Grid]:
    """Of each module, seen in a run on the meta device."""
    twin = meta_twin(network)
    grids: list[Grid] = []

    def note(module: Any, inputs: tuple[Any, ...]) -> None:
        grids.append(module.grid(inputs[0]))

    for module in _modules(twin):
        module.register_forward_pre_hook(note)
    with torch.no_grad():
        twin(meta_images(twin, (1, 3, *image_size)))
    return grids

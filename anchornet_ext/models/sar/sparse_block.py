"""A refinement block that runs on its selected cells alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from anchornet_ext.ops import convolve_cells, pack_cells
from anchornet_ext.ops.cells import CellWeights, take_cells, with_halo

from .blocks import Block, Layer, activate
from .grid import Grid
from .selection import BlockCells, inside


class SparseLayer(nn.Module):
    """A convolution of a refinement block, its batch norm folded, one set of weights a group.

    Convolutions that do not mix all channels of a group (depthwise, ResNeXt's) run through torch on
    copies of the cells with their halo; all others through `ops.convolve_cells`.
    """

    def __init__(self, layer: Layer, groups: int) -> None:
        super().__init__()
        conv = layer.conv
        if not isinstance(layer.norm, nn.Identity) or conv.bias is None:
            raise ValueError(f"the batch norm of {layer} is not folded")
        self.spatial = layer.kernel > 1
        self.activation = layer.activation
        self.inner_groups = conv.groups // groups
        weight = conv.weight.detach()
        weight = weight.reshape(groups, -1, *weight.shape[1:])  # (G, O, C, k, k)
        bias = conv.bias.detach().view(groups, -1)
        self.channels = weight.shape[1]
        if self.inner_groups == 1:
            packed = pack_cells(weight, bias)
            weight, bias = packed.weight, packed.bias
        # In one dimension: whoever moves a whole network to channels_last leaves it as it is.
        self.shape = weight.shape
        self.register_buffer("flat", weight.flatten())
        self.register_buffer("bias", bias)

    flat: Tensor
    bias: Tensor

    @property
    def weight(self) -> Tensor:
        return self.flat.view(self.shape)

    def run(
        self,
        source: Tensor,
        counts: list[int],
        index: Tensor | None,
        activation: str,
        add: Tensor | None = None,
        add_index: Tensor | None = None,
    ) -> Tensor:
        """Cells (R, h, w, C) to (N, h, w, O).

        Args:
            index: (N, 9) for a spatial convolution; else (N,), or None where N is R.
        """
        if index is not None and not self.spatial:
            index = index[:, None]
        if self.inner_groups == 1:
            weights = CellWeights(self.weight, self.bias, self.channels, 9 if self.spatial else 1)
            return convolve_cells(
                source, weights, counts, index, add=add, add_index=add_index, activation=activation
            )
        if self.spatial:
            assert index is not None
            source = with_halo(source, index)
        elif index is not None:
            source = take_cells(source, index[:, 0])
        parts = [
            functional.conv2d(part.permute(0, 3, 1, 2), weight, bias, groups=self.inner_groups)
            for part, weight, bias in zip(
                torch.split(source, counts), self.weight, self.bias, strict=True
            )
        ]
        y = torch.cat([part.permute(0, 2, 3, 1) for part in parts])
        if add is not None:
            y = y + (add if add_index is None else take_cells(add, add_index))
        return activate(y, activation)


class SparseBlock(nn.Module):
    """A refinement block whose batch norms are folded, for cells (see `blocks.Block`)."""

    def __init__(self, block: Block, groups: int) -> None:
        super().__init__()
        layers = [layer for layer in block.layers if isinstance(layer, Layer)]
        self.layers = nn.ModuleList(SparseLayer(layer, groups) for layer in layers)
        self.shortcut = None if block.shortcut is None else SparseLayer(block.shortcut, groups)
        self.has_identity = block.has_identity
        self.activation = block.activation

    def run(self, source: Tensor, cells: BlockCells, grid: Grid) -> Tensor:
        """The block's cells.

        Args:
            source: (R, h, w, C): what the block before made of its cells, or in the first block
                this block's cells of the map.
            cells: of this block.
            grid: of the map.

        Returns:
            (N, h, w, C'), zero beyond the map.
        """
        edge = inside(cells, grid) if grid.is_ragged else None
        add = add_index = None
        if isinstance(self.shortcut, SparseLayer):
            add = self.shortcut.run(source, cells.counts, cells.before, "none")
        elif self.has_identity:
            add, add_index = source, cells.before
        y = source
        for n, layer in enumerate(self.layers):
            assert isinstance(layer, SparseLayer)
            if n == 0:
                around = cells.around if cells.around_before is None else cells.around_before
                index = around if layer.spatial else cells.before
            else:
                index = cells.around if layer.spatial else None
            if n < len(self.layers) - 1:
                y = layer.run(y, cells.counts, index, layer.activation)
            else:
                y = layer.run(y, cells.counts, index, self.activation, add, add_index)
            if edge is not None:
                y = y * edge
        return y

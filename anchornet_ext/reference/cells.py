"""Specification of `anchornet_ext.ops.convolve_cells` and `fuse_cells`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

#: What the numbers of activations mean.
ACTIVATIONS = ("none", "relu", "relu6")


def activate(x: Tensor, activation: str) -> Tensor:
    if activation == "none":
        return x
    return functional.relu(x) if activation == "relu" else functional.relu6(x)


def take_cells(cells: Tensor, index: Tensor) -> Tensor:
    """cells[index], zero where the index is -1."""
    if cells.shape[0] == 0:
        return cells.new_zeros(len(index), *cells.shape[1:])
    taken = cells.index_select(0, index.clamp(min=0))
    return taken.masked_fill_((index < 0).view(-1, *[1] * (cells.dim() - 1)), 0)


def with_halo(cells: Tensor, neighbours: Tensor) -> Tensor:
    """Cells with a border of one pixel, which their neighbours hold.

    Args:
        cells: (R, h, w, C).
        neighbours: (N, 9) int64, the cells above left, above, ..., below right of each of N places,
            the one at the place itself in the middle; -1 where there is none, which reads as zero.

    Returns:
        (N, h + 2, w + 2, C).
    """
    _, height, width, channels = cells.shape
    row = torch.arange(-1, height + 1, device=cells.device)
    column = torch.arange(-1, width + 1, device=cells.device)
    below = row.div(height, rounding_mode="floor") + 1  # 0 above, 1 within, 2 below
    right = column.div(width, rounding_mode="floor") + 1
    shift = (3 * below[:, None] + right).flatten()  # ((h + 2) (w + 2),)
    local = (row % height * width)[:, None] + column % width
    cell = neighbours[:, shift]
    pixel = torch.where(cell < 0, -1, cell * (height * width) + local.flatten())
    taken = take_cells(cells.reshape(-1, channels), pixel.flatten())
    return taken.view(len(neighbours), height + 2, width + 2, channels)


def unpack(weight: Tensor, channels: int) -> Tensor:
    """Packed (S, panels, depth, width) to (S, depth, channels)."""
    segments, _, depth, _ = weight.shape
    return weight.transpose(1, 2).reshape(segments, depth, -1)[..., :channels]


def convolve_cells(
    cells: Tensor,
    neighbours: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    counts: Sequence[int],
    channels: int,
    add: Tensor | None = None,
    add_index: Tensor | None = None,
    activation: int = 0,
) -> Tensor:
    """activation(convolution of the gathered cells + bias + add[add_index])."""
    _, height, width, inputs = cells.shape
    spatial = neighbours is not None and neighbours.shape[1] == 9
    if neighbours is not None:
        cells = with_halo(cells, neighbours) if spatial else take_cells(cells, neighbours[:, 0])
    parts = []
    matrices = unpack(weight, channels)
    for part, matrix, shift in zip(torch.split(cells, list(counts)), matrices, bias, strict=True):
        if spatial:
            kernel = matrix.view(3, 3, inputs, channels).permute(3, 2, 0, 1)
            kernel = kernel.contiguous(memory_format=torch.channels_last)
            convolved = functional.conv2d(part.permute(0, 3, 1, 2), kernel, shift[:channels])
            parts.append(convolved.permute(0, 2, 3, 1))
        else:
            parts.append(torch.addmm(shift[:channels], part.reshape(-1, inputs), matrix))
    out = torch.cat([part.reshape(-1, height, width, channels) for part in parts])
    if add is not None:
        out = out + (add if add_index is None else take_cells(add, add_index))
    return activate(out, ACTIVATIONS[activation])


def fuse_cells(
    base: Tensor, cells: Tensor, slots: Tensor, a: Tensor, height: int, width: int
) -> Tensor:
    """a * base + (1 - a) * refined, the cells at their slots and zero elsewhere."""
    batch, groups, rows, columns = slots.shape
    _, cell_height, cell_width, share = cells.shape
    whole = take_cells(cells, slots.flatten())
    whole = whole.view(batch, groups, rows, columns, cell_height, cell_width, share)
    refined = whole.permute(0, 1, 6, 2, 4, 3, 5).reshape(
        batch, groups * share, rows * cell_height, columns * cell_width
    )[:, :, :height, :width]
    spread = functional.interpolate(base, size=(height, width), mode="nearest")
    weight = a[:, :, None, None]
    return weight * spread + (1 - weight) * refined

"""The cells that masks select, and where each of them finds what it reads."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .grid import Grid


class BlockCells(NamedTuple):
    """The N cells that one refinement block works on, those of channel group 0 first.

    Attributes:
        counts: how many of them each group has.
        place: (N,) int64, which cell of which image and group it is: the flat index in
            (G, B, rows, columns).
        slots: (G, B, rows, columns) int64, the number of the cell there among the N, or -1.
        before: (N,) int64, its number among the cells of the block before, -1 where that did not
            refine it; None in the first block, whose cells come from the map.
        around: (N, 9) int64, the numbers of the cells around it and its own; -1 where none is.
        around_before: the same as numbers of the block before; None in the first block.
    """

    counts: list[int]
    place: Tensor
    slots: Tensor
    before: Tensor | None
    around: Tensor
    around_before: Tensor | None


def select_cells(masks: Tensor) -> list[BlockCells]:
    """The cells of each block of a module.

    The host learns how many cells there are, for all blocks at once; a GPU is waited for that once.

    Args:
        masks: (L, B, G, rows, columns), zero where nothing is refined.
    """
    by_group = (masks != 0).transpose(1, 2)  # (L, G, B, rows, columns)
    _, groups, batch, rows, columns = by_group.shape
    counts: list[list[int]] = by_group.sum((2, 3, 4)).tolist()
    flat = by_group.flatten(1)
    slots = torch.where(flat, flat.cumsum(1) - 1, -1)  # (L, G B rows columns)
    totals = [sum(of_block) for of_block in counts]
    # Where the masks are not zero, block after block, without asking the device how many there are.
    found = torch.nonzero_static(flat, size=sum(totals))
    places = torch.split(found[:, 1], totals)
    shape = (groups, batch, rows, columns)
    result: list[BlockCells] = []
    before: Tensor | None = None
    for own, place, count in zip(slots, places, counts, strict=True):
        padded = functional.pad(own.view(shape), (1, 1, 1, 1), value=-1)
        # The top left neighbour in the padded grid, then the other eight.
        left = place % columns
        top = place.div(columns, rounding_mode="floor")  # over all of (G, B, rows)
        image = top.div(rows, rounding_mode="floor")
        corner = (top + 2 * image) * (columns + 2) + left
        step = torch.arange(3, device=masks.device)
        window = (step[:, None] * (columns + 2) + step).flatten()
        around = padded.flatten()[corner[:, None] + window]  # (N, 9)
        if before is None:
            carried, around_before = None, None
        else:
            carried = before[place]
            # One more at the end, which is what -1 finds.
            around_before = functional.pad(carried, (0, 1), value=-1)[around]
        result.append(BlockCells(count, place, own.view(shape), carried, around, around_before))
        before = own
    return result


def cells_of_map(x: Tensor, cells: BlockCells, grid: Grid) -> Tensor:
    """The cells of a whole map.

    Args:
        x: (B, C, H, W).
        cells: of the first block.
        grid: of the map.

    Returns:
        (N, h, w, C / G); zero beyond the map.
    """
    groups, batch, rows, columns = cells.slots.shape
    share = x.shape[1] // groups
    if grid.is_ragged:
        below, right = rows * grid.cell_height - grid.height, columns * grid.cell_width - grid.width
        x = functional.pad(x, (0, right, 0, below))
    height, width = x.shape[2:]
    pixels = x.permute(0, 2, 3, 1).reshape(-1, share)  # (B H W G, C / G)
    place = cells.place
    column = place % columns
    rest = place.div(columns, rounding_mode="floor")
    row = rest % rows
    rest = rest.div(rows, rounding_mode="floor")
    image, group = rest % batch, rest.div(batch, rounding_mode="floor")
    first = (image * height + row * grid.cell_height) * width + column * grid.cell_width
    down = torch.arange(grid.cell_height, device=x.device)
    across = torch.arange(grid.cell_width, device=x.device)
    within = (down[:, None] * width + across).flatten()
    index = (first[:, None] + within) * groups + group[:, None]  # (N, h w)
    taken = pixels.index_select(0, index.flatten())
    return taken.view(-1, grid.cell_height, grid.cell_width, share)


def inside(cells: BlockCells, grid: Grid) -> Tensor:
    """Which pixels of the cells lie on the map: (N, h, w, 1) bool."""
    _, _, rows, columns = cells.slots.shape
    row = cells.place.div(columns, rounding_mode="floor") % rows * grid.cell_height
    column = cells.place % columns * grid.cell_width
    down = torch.arange(grid.cell_height, device=row.device)
    across = torch.arange(grid.cell_width, device=row.device)
    rows_inside = row[:, None] + down < grid.height
    columns_inside = column[:, None] + across < grid.width
    return (rows_inside[:, :, None] & columns_inside[:, None, :])[..., None]

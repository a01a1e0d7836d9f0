"""The cells that masks select, and where each of them finds what it reads."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .grid import Grid


class BlockCells(NamedTuple):
    """The N cells that one refinement block works on, those of channel group 0 first.

    Attributes:
        counts: how many of them each group has.
        owner: (N,) int64, whose each of them is: the flat index in (G, B).
        local: (N,) int64, where on the map: the flat index in (rows, columns).
        slots: (G, B, rows, columns) int64, the number of the cell there among the N, or -1.
        before: (N,) int64, its number among the cells of the block before, -1 where that did not
            refine it; None in the first block, whose cells come from the map.
        around: (N, 9) int64, the numbers of the cells around it and its own; -1 where none is.
        around_before: the same as numbers of the block before; None in the first block.
    """

    counts: list[int]
    owner: Tensor
    local: Tensor
    slots: Tensor
    before: Tensor | None
    around: Tensor
    around_before: Tensor | None


def select_cells(masks: Tensor) -> list[BlockCells]:
    """The cells of each block of a module.

    All blocks at once, in few operations: for one image each takes longer to start than to run. The
    host learns how many cells there are once; a GPU is waited for that once.

    Args:
        masks: (L, B, G, rows, columns), zero where nothing is refined.
    """
    blocks, batch, groups, rows, columns = masks.shape
    maps, places = groups * batch, rows * columns
    by_group = (masks != 0).transpose(1, 2).reshape(blocks, maps, places)
    # One place more for each map, where never a cell is: what its border has for a neighbour.
    chosen = functional.pad(by_group, (0, 1))
    counts: list[list[int]] = chosen.view(blocks, groups, -1).sum(2).tolist()
    totals = [sum(of_block) for of_block in counts]
    flat = chosen.flatten(1)
    numbers = torch.where(flat, flat.cumsum(1) - 1, -1)  # (L, maps (places + 1))
    # Where the masks are not zero, block after block, without asking the device how many there are.
    found = torch.nonzero_static(by_group.flatten(0, 1), size=sum(totals))
    row, local = found.unbind(1)  # of (L G B, places)
    window = (row * (places + 1))[:, None] + _neighbours(rows, columns, masks.device).index_select(
        0, local
    )
    around = torch.split(numbers.take(window), totals)
    # Of the cells around, what the block before has: its numbers where both have the cell.
    shared = torch.where(flat[1:], numbers[:-1], -1)
    around_before = shared.take(window[totals[0] :] - flat.shape[1])
    before = around_before[:, 4].contiguous()
    later = zip(
        torch.split(before, totals[1:]), torch.split(around_before, totals[1:]), strict=True
    )
    slots = numbers.view(blocks, groups, batch, places + 1)[..., :places]
    return [
        BlockCells(count, owner, own, slot, carried, ring, ring_before)
        for count, owner, own, slot, ring, (carried, ring_before) in zip(
            counts,
            torch.split(row % max(maps, 1), totals),
            torch.split(local, totals),
            torch.unflatten(slots, 3, (rows, columns)),
            around,
            ((None, None), *later),
            strict=True,
        )
    ]


@functools.lru_cache(maxsize=64)
def _neighbours(rows: int, columns: int, device: torch.device) -> Tensor:
    """(rows columns, 9): the places around each place and itself; rows columns beyond the map."""
    places = torch.arange(rows * columns).view(1, 1, rows, columns)
    padded = functional.pad(places, (1, 1, 1, 1), value=rows * columns)
    windows = padded.unfold(2, 3, 1).unfold(3, 3, 1)  # (1, 1, rows, columns, 3, 3)
    return windows.reshape(rows * columns, 9).to(device)


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
    pixels = x.permute(0, 2, 3, 1).reshape(-1, share)  # (B H W G, C / G)
    group = cells.owner.div(max(batch, 1), rounding_mode="floor")
    image = cells.owner - group * batch
    first = image * (x.shape[2] * x.shape[3] * groups) + group
    index = first[:, None] + _pixels_of_cells(grid, groups, x.device).index_select(0, cells.local)
    taken = pixels.index_select(0, index.flatten())
    return taken.view(-1, grid.cell_height, grid.cell_width, share)


@functools.lru_cache(maxsize=64)
def _pixels_of_cells(grid: Grid, groups: int, device: torch.device) -> Tensor:
    """(rows columns, h w): the pixels of each place, on a map of whole cells with `groups` shares a
    pixel; of the first image's first group."""
    height, width = grid.rows * grid.cell_height, grid.columns * grid.cell_width
    pixels = torch.arange(height * width).view(
        grid.rows, grid.cell_height, grid.columns, grid.cell_width
    )
    return (pixels.transpose(1, 2).reshape(-1, grid.pixels) * groups).to(device)


def inside(cells: BlockCells, grid: Grid) -> Tensor:
    """Which pixels of the cells lie on the map: (N, h, w, 1) bool."""
    columns = cells.slots.shape[3]
    row = cells.local.div(columns, rounding_mode="floor") * grid.cell_height
    column = cells.local % columns * grid.cell_width
    down = torch.arange(grid.cell_height, device=row.device)
    across = torch.arange(grid.cell_width, device=row.device)
    rows_inside = row[:, None] + down < grid.height
    columns_inside = column[:, None] + across < grid.width
    return (rows_inside[:, :, None] & columns_inside[:, None, :])[..., None]

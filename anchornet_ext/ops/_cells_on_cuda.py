"""`convolve_cells` on CUDA: gathered by one launch, convolved by torch, finished by another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from anchornet_ext import _extension
from anchornet_ext.reference import cells as reference


def with_halo(cells: Tensor, neighbours: Tensor) -> Tensor:
    """As `reference.cells.with_halo`, in one launch on CUDA."""
    if _gathers(cells):
        return _gathered(cells.contiguous(), neighbours.contiguous(), len(neighbours))
    return reference.with_halo(cells, neighbours)


def take_cells(cells: Tensor, index: Tensor) -> Tensor:
    """As `reference.cells.take_cells`, in one launch on CUDA."""
    if _gathers(cells):
        return _gathered(cells.contiguous(), index[:, None].contiguous(), len(index))
    return reference.take_cells(cells, index)


def _gathers(cells: Tensor) -> bool:
    """Whether the CUDA kernel can: it knows no gradient."""
    wants_gradient = torch.is_grad_enabled() and cells.requires_grad
    return cells.is_cuda and _extension.cuda_loaded and cells.dim() == 4 and not wants_gradient


def convolve_cells(
    cells: Tensor,
    neighbours: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    counts: Sequence[int],
    channels: int,
    add: Tensor | None,
    add_index: Tensor | None,
    activation: int,
) -> Tensor:
    """The operator's kernel; see `ops.convolve_cells`.

    Nothing waits for the device. Batches are rounded up to sizes that come again, see `_room`.
    """
    if cells.dim() != 4 or not cells.is_contiguous():
        raise RuntimeError(
            f"convolve_cells: cells must be (R, h, w, C) and contiguous, got shape "
            f"{tuple(cells.shape)}, strides {cells.stride()}"
        )
    _, height, width, inputs = cells.shape
    count = len(cells) if neighbours is None else len(neighbours)
    taps = 1 if neighbours is None else neighbours.shape[1]
    _check(weight, bias, counts, count, taps * inputs, channels)
    added = add if add_index is None else add_index
    if added is not None and len(added) != count:
        raise RuntimeError(f"convolve_cells: add must be of {count} cells, got {len(added)}")
    # Where each segment's batch ends once it is rounded up: within the next one's cells, or beyond
    # the last. What is computed there is thrown away.
    begins = [sum(counts[:s]) for s in range(len(counts))]
    rooms = [_room(n) for n in counts]
    rows = max(begin + room for begin, room in zip(begins, rooms, strict=True))
    if neighbours is None:
        source = _with_rows(cells, rows)
    else:
        source = _gathered(cells, neighbours, rows)
    out = cells.new_empty(0) if len(counts) == 1 else cells.new_empty(rows, height, width, channels)
    # (S, O, k k, C): as channels_last kernels lie
    kernels = reference.unpack(weight, channels).transpose(1, 2).contiguous()
    side = 3 if taps == 9 else 1
    for s, (begin, n, room) in enumerate(zip(begins, counts, rooms, strict=True)):
        kernel = kernels[s].view(channels, side, side, inputs).permute(0, 3, 1, 2)
        convolved = _convolved(source[begin : begin + room], kernel)
        if len(counts) == 1:
            out = convolved
        if n == 0:
            continue
        torch.ops.anchornet_ext.finish_cells(
            convolved[:n],
            bias[s],
            add if add is None or add_index is not None else add[begin : begin + n],
            None if add_index is None else add_index[begin : begin + n],
            activation,
            out[begin : begin + n],
        )
    return out[:count]


def _check(
    weight: Tensor, bias: Tensor, counts: Sequence[int], count: int, depth: int, channels: int
) -> None:
    """What torch's convolutions would not notice, in the words of the CPU's kernel."""
    if min(counts, default=-1) < 0 or sum(counts) != count:
        raise RuntimeError(
            f"convolve_cells: counts add up to {sum(counts)}, but there are {count} cells"
        )
    if weight.dim() != 4 or weight.shape[0] != len(counts) or weight.shape[2] != depth:
        raise RuntimeError(
            f"convolve_cells: weight must be packed as ({len(counts)}, panels, {depth}, width), "
            f"got shape {tuple(weight.shape)}"
        )
    padded = weight.shape[1] * weight.shape[3]
    if not 0 < channels <= padded or bias.shape != (len(counts), padded):
        raise RuntimeError(
            f"convolve_cells: bias must be {(len(counts), padded)}, got shape {tuple(bias.shape)}"
        )


def _room(count: int) -> int:
    """`count` rounded up, by a sixteenth at most, to one of sixteen sizes for each power of two.

    How many cells are selected differs from batch to batch. cuDNN looks for an algorithm once for
    each size of batch, which takes the host longer than the device takes to convolve.
    """
    step = 1 << max(0, count.bit_length() - 5)
    return -(-count // step) * step


def _gathered(cells: Tensor, index: Tensor | None, rows: int) -> Tensor:
    result: Tensor = torch.ops.anchornet_ext.gather_cells(cells, index, rows)
    return result


def _with_rows(cells: Tensor, rows: int) -> Tensor:
    """At least so many cells, whatever those beyond the last hold.

    The results of `convolve_cells` have such room behind them; others are copied into it.
    """
    if rows <= len(cells):
        return cells
    _, height, width, channels = cells.shape
    size = height * width * channels
    held = cells.untyped_storage().nbytes() // cells.element_size() - cells.storage_offset()
    if held >= rows * size:
        # Not by the tensor's own strides, which say nothing where it has one cell.
        strides = (size, width * channels, channels, 1)
        return cells.as_strided((rows, height, width, channels), strides)
    return _gathered(cells, None, rows)


def _convolved(cells: Tensor, kernel: Tensor) -> Tensor:
    """Cells with their halo (N, h + k - 1, w + k - 1, C) to (N, h, w, O), contiguous."""
    images = cells.permute(0, 3, 1, 2)  # channels_last
    if torch.is_autocast_enabled(cells.device.type):
        with torch.autocast(cells.device.type, enabled=False):
            out = functional.conv2d(images, kernel)
    else:
        out = functional.conv2d(images, kernel)
    return out.permute(0, 2, 3, 1).contiguous()

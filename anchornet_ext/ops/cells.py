"""Convolutions of selected cells of a map, and the map that they are put back into: for SAR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anchornet_ext import _extension, reference
from anchornet_ext.reference.cells import ACTIVATIONS

from . import _cells_on_cuda
from ._calls import call_checked
from ._cells_on_cuda import take_cells, with_halo

__all__ = ["CellWeights", "convolve_cells", "fuse_cells", "pack_cells", "take_cells", "with_halo"]

_CONVOLVE = "anchornet_ext::convolve_cells"
_FUSE = "anchornet_ext::fuse_cells"


class CellWeights(NamedTuple):
    """The weights of `convolve_cells` in the order in which they are read; see `pack_cells`.

    Attributes:
        weight: (S, panels, k k C, panel width).
        bias: (S, panels * panel width).
        channels: O, of the output.
        taps: k k.
    """

    weight: Tensor
    bias: Tensor
    channels: int
    taps: int


def pack_cells(weight: Tensor, bias: Tensor) -> CellWeights:
    """Packs the weights of S convolutions, one for each segment of cells.

    Args:
        weight: (S, O, C, k, k), k 1 or 3, floating point.
        bias: (S, O).

    Raises:
        ValueError: another shape.
    """
    if weight.dim() != 5 or weight.shape[3:] not in ((1, 1), (3, 3)) or 0 in weight.shape:
        raise ValueError(f"weight must be (S, O, C, k, k), k 1 or 3, got {tuple(weight.shape)}")
    segments, channels, _, kernel, _ = weight.shape
    if bias.shape != (segments, channels):
        raise ValueError(f"bias must be {(segments, channels)}, got {tuple(bias.shape)}")
    # As wide as registers allow, but no wider than it takes: padding is computed as well.
    width = next(w for w in (64, 32, 16) if w == 16 or channels % w == 0 or channels > 2 * w)
    panels = -(-channels // width)
    padding = (0, panels * width - channels)
    matrix = weight.permute(0, 3, 4, 2, 1).reshape(segments, -1, channels)  # (S, k k C, O)
    matrix = torch.nn.functional.pad(matrix, padding).view(segments, -1, panels, width)
    return CellWeights(
        matrix.transpose(1, 2).contiguous(),
        torch.nn.functional.pad(bias, padding),
        channels,
        kernel * kernel,
    )


def convolve_cells(
    cells: Tensor,
    weights: CellWeights,
    counts: Sequence[int],
    neighbours: Tensor | None = None,
    *,
    add: Tensor | None = None,
    add_index: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """Convolves N cells, each with what its neighbours hold, without copying cells or halo.

    Cell n becomes ``activation(conv(cell n) + bias + add[add_index[n]])``, by the weights of the
    segment that it is in: the first counts[0] cells are of segment 0, and so on.

    Args:
        cells: (R, h, w, C) floating point; contiguous, or it costs a copy.
        weights: of `pack_cells`, in the dtype of the cells.
        counts: how many of the N cells are in each of the S segments.
        neighbours: (N, 1) int64 for a 1x1 convolution, the cell that each of the N places reads;
            None: place n reads cell n. (N, 9) for 3x3: the cells above left, above, ..., below
            right, in reading order, the place's own in the middle. -1 reads as zeros.
        add: (N, h, w, O), or (A, h, w, O) with `add_index` (N,) int64, where -1 adds nothing.
        activation: "none", "relu" or "relu6".

    Returns:
        (N, h, w, O). A cell's values do not depend on the cells that it does not read. On CUDA the
        cells are gathered with their halo in one launch, torch's convolution follows, and what is
        left is one launch more; there an index that is no cell's reads as zeros instead of being
        refused. On the CPU, in other dtypes than float32, torch computes all of it.

    Raises:
        ValueError: a shape, index, device or activation that does not fit.
        TypeError: a dtype that is not supported, or not the same.
        ImportError: the native library is missing.
    """
    if not isinstance(cells, Tensor) or not cells.is_floating_point():
        raise TypeError(f"cells must be a floating point tensor, got {_kind(cells)}")
    for name, value in (("weight", weights.weight), ("bias", weights.bias), ("add", add)):
        if value is not None and value.dtype != cells.dtype:
            raise TypeError(f"{name} must be {cells.dtype} like the cells, got {value.dtype}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    taps = 1 if neighbours is None else neighbours.shape[-1]
    if taps != weights.taps:
        raise ValueError(f"weights of {weights.taps} taps, but neighbours for {taps}")
    arguments = (
        cells.contiguous(),
        None if neighbours is None else neighbours.contiguous(),
        weights.weight,
        weights.bias,
        list(counts),
        weights.channels,
        None if add is None else add.contiguous(),
        add_index,
        ACTIVATIONS.index(activation),
    )
    if not _has_kernels(cells):
        return reference.convolve_cells(*arguments)
    _extension.require()
    operator = torch.ops.anchornet_ext.convolve_cells.default
    result: Tensor = call_checked(operator, *arguments)
    return result


def fuse_cells(
    base: Tensor, cells: Tensor, slots: Tensor, a: Tensor, size: tuple[int, int]
) -> Tensor:
    """Eq. 5 of SAR: ``a * base + (1 - a) * refined``, without making either map.

    Args:
        base: (B, C, h, w) floating point, brought to `size` by its nearest pixels.
        cells: (N, p, q, C / G), the refined cells.
        slots: (B, G, rows, columns) int64: which cell lies there, of each channel group; -1: none,
            and `refined` is zero there. The last rows and columns may reach beyond the map.
        a: (B, C).
        size: (H, W), at most (rows p, columns q).

    Returns:
        (B, C, H, W) in channels_last. One launch on CUDA, where a slot that is no cell's is as -1.
        On the CPU, in other dtypes than float32, plain torch computes it.

    Raises:
        ValueError: a shape, index or device that does not fit.
        TypeError: a dtype that is not supported, or not the same.
        ImportError: the native library is missing.
    """
    if not isinstance(base, Tensor) or not base.is_floating_point():
        raise TypeError(f"base must be a floating point tensor, got {_kind(base)}")
    for name, value in (("cells", cells), ("a", a)):
        if value.dtype != base.dtype:
            raise TypeError(f"{name} must be {base.dtype} like the base, got {value.dtype}")
    arguments = (
        base.contiguous(memory_format=torch.channels_last),
        cells.contiguous(),
        slots.contiguous(),
        a.contiguous(),
    )
    if not _has_kernels(base):
        fused = reference.fuse_cells(*arguments, *size)
        return fused.contiguous(memory_format=torch.channels_last)
    _extension.require()
    operator = torch.ops.anchornet_ext.fuse_cells.default
    result: Tensor = call_checked(operator, *arguments, *size)
    return result


def _has_kernels(x: Tensor) -> bool:
    """Whether the operators know the dtype and the device; meta stands for any that they know."""
    if x.is_cuda and _extension.cuda_loaded:
        return x.dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    return x.dtype == torch.float32 and x.device.type in ("cpu", "cuda", "meta")


def _kind(value: object) -> str:
    return f"{value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def _fake_convolve(
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
    count = cells.shape[0] if neighbours is None else neighbours.shape[0]
    return cells.new_empty(count, cells.shape[1], cells.shape[2], channels)


def _fake_fuse(
    base: Tensor, cells: Tensor, slots: Tensor, a: Tensor, height: int, width: int
) -> Tensor:
    return torch.empty(
        (base.shape[0], base.shape[1], height, width),
        dtype=base.dtype,
        device=base.device,
        memory_format=torch.channels_last,
    )


def _fuse_by_torch(*arguments: Any) -> Tensor:
    fused = reference.fuse_cells(*arguments)
    return fused.contiguous(memory_format=torch.channels_last)


if _extension.available():
    torch.library.register_fake(_CONVOLVE, _fake_convolve)
    torch.library.register_fake(_FUSE, _fake_fuse)
    if _extension.cuda_loaded:
        torch.library.register_kernel(_CONVOLVE, "cuda", _cells_on_cuda.convolve_cells)
    else:
        torch.library.register_kernel(_CONVOLVE, "cuda", reference.convolve_cells)
        torch.library.register_kernel(_FUSE, "cuda", _fuse_by_torch)

"""Convolutions of whole maps on a CPU, made for small ones: the last layers of a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from anchornet_ext import _extension
from anchornet_ext.reference.maps import ACTIVATIONS

from ._calls import MAP_DTYPES, call_checked, check_cpu_maps, check_map_dtype

_CONVOLVE = "anchornet_ext::convolve_maps"
_PANEL, _STEP = 64, 16  # as in csrc/ops/convolve_maps.h


class MapWeights(NamedTuple):
    """The weights of `convolve_maps` in the order in which they are read; see `pack_maps`.

    Attributes:
        weight: one row of panels of up to 64 outputs, each (k l C, width); in bfloat16
            (k l C/2, width, 2), two inputs together, the last with a zero where C is odd.
        channels: O, of the output.
        kernel: (k, l).
    """

    weight: Tensor
    channels: int
    kernel: tuple[int, int]


def pack_maps(weight: Tensor) -> MapWeights:
    """Packs the weights (O, C, k, l), float32 or bfloat16, of a convolution.

    Raises:
        ValueError: another shape, or one without entries.
        TypeError: another dtype.
    """
    if weight.dim() != 4 or 0 in weight.shape:
        raise ValueError(f"weight must be (O, C, k, l), got {tuple(weight.shape)}")
    check_map_dtype("weight", weight.dtype)
    channels, inputs, height, width = weight.shape
    together = 2 if weight.dtype == torch.bfloat16 else 1
    padding = (0, -channels % _STEP, 0, -inputs % together)
    matrix = torch.nn.functional.pad(weight.permute(2, 3, 1, 0), padding)
    # (k l C / together, O, together)
    matrix = matrix.reshape(-1, together, matrix.shape[-1]).transpose(1, 2)
    panels = [panel.reshape(-1) for panel in torch.split(matrix, _PANEL, dim=1)]
    return MapWeights(torch.cat(panels), channels, (height, width))


def convolve_maps(
    maps: Tensor,
    weights: MapWeights,
    bias: Tensor | None = None,
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    add: Tensor | None = None,
    activation: str = "none",
) -> Tensor:
    """``activation(convolution of the maps + bias + add)`` in one pass over them.

    PyTorch's own convolutions reach half of a processor's rate or less on maps of a few pixels.
    Here the pixels of several images are summed together, the weights are fetched ahead, and what
    the kernel would read of the padding is left out.

    Args:
        maps: (B, C, H, W) float32 or bfloat16 on the CPU; channels_last, or it costs a copy.
        weights: of `pack_maps`, in the maps' dtype, as `bias` and `add`.
        bias: (O,) or None.
        stride, padding, dilation: of rows and of columns, as `torch.nn.functional.conv2d` has them;
            each below 2^31.
        add: (B, O, H', W'), added before the activation.
        activation: "none" or "relu".

    Returns:
        (B, O, H', W') of the maps' dtype in channels_last. There are no gradients. An image's
        values do not depend on the others. In bfloat16 everything is summed in float32 and rounded
        once, at the end.

    Raises:
        ValueError: a shape, device or activation that does not fit.
        TypeError: neither float32 nor bfloat16, or not all of one.
        ImportError: the native library is missing.
    """
    check_cpu_maps("maps", maps, MAP_DTYPES)
    for name, value in (("weight", weights.weight), ("bias", bias), ("add", add)):
        if value is not None and value.dtype != maps.dtype:
            raise TypeError(f"{name} must be {maps.dtype} like the maps, got {value.dtype}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    _extension.require()
    last = torch.channels_last
    result: Tensor = call_checked(
        torch.ops.anchornet_ext.convolve_maps.default,
        maps.contiguous(memory_format=last),
        weights.weight,
        None if bias is None else bias.contiguous(),
        weights.channels,
        weights.kernel,
        stride,
        padding,
        dilation,
        None if add is None else add.contiguous(memory_format=last),
        ACTIVATIONS.index(activation),
    )
    return result


def _fake_convolve(
    maps: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    channels: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    add: Tensor | None,
    activation: int,
) -> Tensor:
    size = [
        (maps.shape[2 + d] + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1) // stride[d] + 1
        for d in range(2)
    ]
    shape = (maps.shape[0], channels, *size)
    return torch.empty(
        shape, dtype=maps.dtype, device=maps.device, memory_format=torch.channels_last
    )


if _extension.available():
    torch.library.register_fake(_CONVOLVE, _fake_convolve)

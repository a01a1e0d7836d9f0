"""Runs of inverted residuals on a CPU at once: what MobileNets and EfficientNets are made of."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from anchornet_ext import _extension
from anchornet_ext.reference.inverted_residuals import (
    ACTIVATIONS,
    MAP_ACTIVATIONS,
    Convolution,
    GlobalMean,
    InvertedResidual,
    Layer,
    SqueezeExcitation,
)

from ._calls import call_checked, check_cpu_maps

_NAME = "anchornet_ext::inverted_residuals"
#: Numbers that the operator is told of each layer; csrc/ops/inverted_residuals.h names them.
_SETTINGS = 12
_PANEL_VECTORS = 3  # as in csrc/ops/cpu/mbconv/kernels.h


class PackedLayers(NamedTuple):
    """What `inverted_residuals` takes; see `pack_layers`.

    Attributes:
        weights: all parameters in one row, in the order in which they are read.
        settings: twelve numbers for each layer.
    """

    weights: Tensor
    settings: tuple[int, ...]


def pack_layers(layers: Sequence[Layer]) -> PackedLayers:
    """Puts the parameters of some layers in the order in which this processor reads them.

    Args:
        layers: `Convolution`, `InvertedResidual` and `GlobalMean`, with parameters in float32 on
            the CPU; at least one with parameters.

    Raises:
        TypeError: a layer of another type, or parameters that are not float32.
        ValueError: a shape, stride or activation that there is no kernel for, no parameters, or
            some that are not on the CPU; the message holds the value.
        ImportError: the native library is missing.
    """
    if all(isinstance(layer, GlobalMean) for layer in layers):
        raise ValueError(f"there must be at least one layer with parameters, got {[*layers]}")
    channels: int | None = None
    parts: list[Tensor] = []
    settings: list[int] = []
    for n, layer in enumerate(layers):
        name = f"layers[{n}]"
        if isinstance(layer, Convolution):
            channels = _check_convolution(name, layer, channels)
            parts += _pack_convolution(layer)
            settings += _settings_of(layer, None)
        elif isinstance(layer, InvertedResidual):
            channels = _check_block(name, layer, channels)
            parts += _pack_block(layer)
            settings += _settings_of(layer.expand, layer)
        elif isinstance(layer, GlobalMean):
            settings += _settings_of(None, None)
        else:
            raise TypeError(
                f"{name} must be a Convolution, an InvertedResidual or a GlobalMean, "
                f"got {type(layer).__name__}"
            )
    return PackedLayers(torch.cat(parts), tuple(settings))


def inverted_residuals(images: Tensor, layers: PackedLayers) -> Tensor:
    """Convolutions, inverted residuals and means of maps one after the other.

    Every convolution is padded by half its kernel; behind a mean, 1x1 ones are linear layers. Where
    maps are large, the CPU kernel takes one image at a time, so that what is between the layers
    stays in the processor's cache; where they are small, as many images as fit share what takes
    longest there, reading the weights.

    Args:
        images: (B, C, H, W) float32 on the CPU; channels_last, or it costs a copy.
        layers: of `pack_layers`.

    Returns:
        (B, C', h, w) float32 in channels_last. There are no gradients. An image's values do not
        depend on the others or on the number of threads.

    Raises:
        ValueError: a shape or device that does not fit.
        TypeError: not float32.
        ImportError: the native library is missing.
        NotImplementedError: an argument has a forward-mode gradient.
    """
    check_cpu_maps("images", images)
    _extension.require()
    result: Tensor = call_checked(
        torch.ops.anchornet_ext.inverted_residuals.default,
        images.contiguous(memory_format=torch.channels_last),
        layers.weights,
        layers.settings,
    )
    return result


def _check_parameter(name: str, value: object, shape: tuple[int | None, ...]) -> tuple[int, ...]:
    """The shape of a parameter, of which None may be anything but 0."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dtype != torch.float32:
        raise TypeError(f"{name} must be float32, got {value.dtype}")
    if not value.is_cpu:
        raise ValueError(f"{name} must be on the CPU, got {value.device}")
    got = tuple(value.shape)
    fits = len(got) == len(shape) and 0 not in got
    if not fits or any(w is not None and w != g for g, w in zip(got, shape, strict=True)):
        expected = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name} must be ({expected}), got {got}")
    return got


def _check_convolution(
    name: str,
    layer: Convolution,
    channels: int | None,
    kernels: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> int:
    """Its outputs; `channels` is what `weight` must have in its second dimension."""
    out, _, height, width = _check_parameter(
        f"{name}.weight", layer.weight, (None, channels, None, None)
    )
    if height != width or height % 2 == 0 or (kernels is not None and height not in kernels):
        expected = "(k, k) with k odd" if kernels is None else f"k x k with k in {(*kernels,)}"
        raise ValueError(f"the kernel of {name} must be {expected}, got {height}x{width}")
    if layer.bias is not None:
        _check_parameter(f"{name}.bias", layer.bias, (out,))
    if layer.stride < 1 or (strides is not None and layer.stride not in strides):
        expected = "at least 1" if strides is None else f"in {(*strides,)}"
        raise ValueError(f"{name}.stride must be {expected}, got {layer.stride}")
    if layer.activation not in MAP_ACTIVATIONS:
        raise ValueError(
            f"{name}.activation must be one of {', '.join(MAP_ACTIVATIONS)}, "
            f"got {layer.activation!r}"
        )
    return out


def _check_block(name: str, layer: InvertedResidual, channels: int | None) -> int:
    if layer.expand is not None:
        expanded = _check_convolution(f"{name}.expand", layer.expand, channels, (1,), (1,))
        channels = layer.expand.weight.shape[1]
        _check_parameter(
            f"{name}.depthwise.weight", layer.depthwise.weight, (expanded, 1, None, None)
        )
    elif channels is not None:
        _check_parameter(
            f"{name}.depthwise.weight", layer.depthwise.weight, (channels, 1, None, None)
        )
    expanded = _check_convolution(f"{name}.depthwise", layer.depthwise, 1, (3, 5), (1, 2))
    if layer.excitation is not None:
        _check_excitation(f"{name}.excitation", layer.excitation, expanded)
    out = _check_convolution(f"{name}.project", layer.project, expanded, (1,), (1,))
    if layer.project.activation != "none":
        raise ValueError(
            f"{name}.project.activation must be 'none', got {layer.project.activation!r}"
        )
    inputs = expanded if channels is None else channels
    if layer.residual and (layer.depthwise.stride != 1 or inputs != out):
        raise ValueError(
            f"{name} cannot be added to its input: stride {layer.depthwise.stride}, {inputs} "
            f"channels in and {out} out"
        )
    return out


def _check_excitation(name: str, layer: SqueezeExcitation, channels: int) -> None:
    ones = (1,) * (layer.squeeze.dim() - 2)
    squeezed, *_ = _check_parameter(f"{name}.squeeze", layer.squeeze, (None, channels, *ones))
    ones = (1,) * (layer.excite.dim() - 2)
    _check_parameter(f"{name}.excite", layer.excite, (channels, squeezed, *ones))
    for part, bias, size in (
        ("squeeze_bias", layer.squeeze_bias, squeezed),
        ("excite_bias", layer.excite_bias, channels),
    ):
        if bias is not None:
            _check_parameter(f"{name}.{part}", bias, (size,))
    for part, activation in (("activation", layer.activation), ("gate", layer.gate)):
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"{name}.{part} must be one of {', '.join(ACTIVATIONS)}, got {activation!r}"
            )


def _settings_of(first: Convolution | None, block: InvertedResidual | None) -> Iterator[int]:
    """The twelve numbers of a layer, in the order of csrc/ops/inverted_residuals.h."""
    if first is None:
        yield from (0, 1, 0, 0)
    else:
        channels, _, kernel, _ = first.weight.shape
        yield from (kernel, first.stride, channels, ACTIVATIONS.index(first.activation))
    if block is None:
        yield from (0,) * (_SETTINGS - 4)
        return
    deep, excitation = block.depthwise, block.excitation
    yield from (deep.weight.shape[2], deep.stride, ACTIVATIONS.index(deep.activation))
    if excitation is None:
        yield from (0, 0, 0)
    else:
        yield len(excitation.squeeze)
        yield ACTIVATIONS.index(excitation.activation)
        yield ACTIVATIONS.index(excitation.gate)
    yield len(block.project.weight)
    yield int(block.residual)


def _pack_convolution(layer: Convolution) -> Iterator[Tensor]:
    # A row of an image holds (column, channel).
    yield _panels(layer.weight.permute(0, 2, 3, 1).flatten(1))
    yield _columns(layer.bias, len(layer.weight))


def _pack_block(layer: InvertedResidual) -> Iterator[Tensor]:
    if layer.expand is not None:
        yield from _pack_convolution(layer.expand)
    expanded = len(layer.depthwise.weight)
    yield _columns(layer.depthwise.weight.flatten(1), expanded)
    yield _columns(layer.depthwise.bias, expanded)
    if layer.excitation is not None:
        squeeze, squeeze_bias, excite, excite_bias, *_ = layer.excitation
        yield _panels(squeeze.flatten(1))
        yield _columns(squeeze_bias, len(squeeze))
        yield _panels(excite.flatten(1))
        yield _columns(excite_bias, len(excite))
    yield from _pack_convolution(layer.project)


def _panels(matrix: Tensor) -> Tensor:
    """Weights (outputs, inputs) as panels of some outputs, each (inputs, width), one by one."""
    padded = torch.nn.functional.pad(matrix, (0, 0, 0, -len(matrix) % _width()))
    panels = torch.split(padded, _PANEL_VECTORS * _width())
    return torch.cat([panel.t().reshape(-1) for panel in panels])


def _columns(values: Tensor | None, channels: int) -> Tensor:
    """(channels,) or (channels, rows) as rows of whole vectors; None as zeros."""
    if values is None:
        values = torch.zeros(channels)
    rows = values.reshape(channels, -1).t()
    return torch.nn.functional.pad(rows, (0, -channels % _width())).reshape(-1)


@functools.cache
def _width() -> int:
    """Floats in a vector of the kernels that this processor runs."""
    _extension.require()
    width: int = importlib.import_module("anchornet_ext._C").vector_width()
    return width


def _fake(images: Tensor, weights: Tensor, settings: Sequence[int]) -> Tensor:
    channels, *size = images.shape[1:]
    for n in range(0, len(settings), _SETTINGS):
        kernel, stride, outputs, _, deep_kernel, deep_stride, *_, out, _ = settings[
            n : n + _SETTINGS
        ]
        if kernel:
            channels, size = outputs, _size_after(size, kernel, stride)
        if deep_kernel:
            channels, size = out, _size_after(size, deep_kernel, deep_stride)
        if not kernel and not deep_kernel:
            size = [1, 1]
    return torch.empty(
        (images.shape[0], channels, *size),
        dtype=images.dtype,
        device=images.device,
        memory_format=torch.channels_last,
    )


def _size_after(size: Sequence[int], kernel: int, stride: int) -> list[int]:
    return [(n + kernel // 2 * 2 - kernel) // stride + 1 for n in size]


if _extension.available():
    torch.library.register_fake(_NAME, _fake)

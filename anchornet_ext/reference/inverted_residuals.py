"""Inverted residuals one after the other, by torch's own convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS = ("none", "relu", "relu6", "hardswish", "silu", "hardsigmoid", "sigmoid")
#: Of maps: they leave a zero a zero.
MAP_ACTIVATIONS = ACTIVATIONS[:5]


class Convolution(NamedTuple):
    """A convolution padded by half its kernel, and what follows it.

    Attributes:
        weight: (O, C, k, k) with k odd; batch norm is folded into it.
        bias: (O,) or None.
        stride: of rows and columns.
        activation: one of `MAP_ACTIVATIONS`.
    """

    weight: Tensor
    bias: Tensor | None = None
    stride: int = 1
    activation: str = "none"


class SqueezeExcitation(NamedTuple):
    """Channel gates: ``gate(excite(activation(squeeze(mean of the map))))``.

    Attributes:
        squeeze: (S, E), or (S, E, 1, 1); `squeeze_bias` (S,) or None.
        excite: (E, S), or (E, S, 1, 1); `excite_bias` (E,) or None.
        activation, gate: of `ACTIVATIONS`.
    """

    squeeze: Tensor
    squeeze_bias: Tensor | None
    excite: Tensor
    excite_bias: Tensor | None
    activation: str = "relu"
    gate: str = "hardsigmoid"


class InvertedResidual(NamedTuple):
    """An expansion, a depthwise convolution, channel gates and a projection.

    Attributes:
        expand: 1x1 with stride 1, or None.
        depthwise: (E, 1, k, k) with k of 3 or 5 and a stride of 1 or 2.
        excitation: or None.
        project: 1x1 with stride 1 and without activation.
        residual: whether the input is added to the result.
    """

    expand: Convolution | None
    depthwise: Convolution
    excitation: SqueezeExcitation | None
    project: Convolution
    residual: bool = False


@dataclass(frozen=True)
class GlobalMean:
    """The mean of each map, (B, C, 1, 1)."""


#: Layers with parameters.
WeightedLayer = Convolution | InvertedResidual
Layer = WeightedLayer | GlobalMean


def inverted_residuals(images: Tensor, layers: Sequence[Layer]) -> Tensor:
    """(B, C', h, w) of images (B, C, H, W): the layers one after the other."""
    x = images
    for layer in layers:
        if isinstance(layer, Convolution):
            x = _convolve(x, layer)
            continue
        if isinstance(layer, GlobalMean):
            x = x.mean(dim=(2, 3), keepdim=True)
            continue
        y = x if layer.expand is None else _convolve(x, layer.expand)
        y = _convolve(y, layer.depthwise, groups=len(layer.depthwise.weight))
        if layer.excitation is not None:
            y = y * _gates(y, layer.excitation)
        y = _convolve(y, layer.project)
        x = x + y if layer.residual else y
    return x


def _convolve(x: Tensor, layer: Convolution, groups: int = 1) -> Tensor:
    weight, bias, stride, activation = layer
    out = F.conv2d(x, weight, bias, stride, padding=weight.shape[2] // 2, groups=groups)
    return _activate(out, activation)


def _gates(x: Tensor, layer: SqueezeExcitation) -> Tensor:
    hidden = F.linear(x.mean(dim=(2, 3)), layer.squeeze.flatten(1), layer.squeeze_bias)
    hidden = _activate(hidden, layer.activation)
    gates = F.linear(hidden, layer.excite.flatten(1), layer.excite_bias)
    return _activate(gates, layer.gate)[:, :, None, None]


def _activate(x: Tensor, activation: str) -> Tensor:
    if activation == "none":
        return x
    if activation == "sigmoid":
        return x.sigmoid()
    function = getattr(F, activation)
    out: Tensor = function(x)
    return out

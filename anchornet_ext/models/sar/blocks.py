"""The convolutional blocks that SAR's two branches are made of.

A block is layers (convolution, batch norm, activation) in a row, beside them a shortcut. Written
out like this rather than as one class per family, it can run on whole maps, on masked maps, and
on the selected cells alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from .grid import apply_mask


class Layer(nn.Module):
    """A convolution that keeps the size (up to its stride), its batch norm and its activation.

    Args:
        inputs, outputs: channels.
        kernel: 1 or 3.
        stride: of the convolution.
        groups: of the convolution.
        activation: "relu", "relu6" or "none".
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )
        self.norm: nn.Module = nn.BatchNorm2d(outputs)
        self.kernel = kernel
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return activate(self.norm(self.conv(x)), self.activation)


def activate(x: Tensor, activation: str) -> Tensor:
    """`x` after one of "relu", "relu6" and "none", in place."""
    if activation == "relu":
        return nn.functional.relu(x, inplace=True)
    if activation == "relu6":
        return nn.functional.relu6(x, inplace=True)
    return x


class Block(nn.Module):
    """Layers in a row and a shortcut around them.

    Args:
        layers: the last one's activation must be "none".
        shortcut: from the block's input: "identity", "none", or a layer without activation.
        activation: of the sum.
    """

    def __init__(
        self, layers: Sequence[Layer], shortcut: Layer | str, activation: str = "relu"
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.shortcut = shortcut if isinstance(shortcut, Layer) else None
        self.has_identity = shortcut == "identity"
        self.activation = activation

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, C, H, W) to (B, C', H', W').

        With a mask (B, G, H, W), a block of stride 1 is a refinement block (Eq. 3): its input is
        masked, and what comes out is zero where nothing is selected. So is what every convolution
        reads that is wider than a pixel. The paper masks the input only; then the first of two 3x3
        convolutions leaks into cells that inference would have to compute as well (all 16 pixels
        for a cell of 4), and the cost would not be the activation rate times the dense cost, as
        Eq. 7 has it.
        """
        x = _masked(x, mask)
        y = x
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            if index and layer.kernel > 1:
                y = _masked(y, mask)
            y = layer(y)
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        elif self.has_identity:
            y = y + x
        return _masked(activate(y, self.activation), mask)


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    return x if mask is None else apply_mask(x, mask)


class Shape(NamedTuple):
    """What a block of some family must be told to be built.

    Attributes:
        inputs, outputs: channels.
        stride: of the block.
        groups: into how many channel groups every convolution is split (G), which never mix.
    """

    inputs: int
    outputs: int
    stride: int = 1
    groups: int = 1


class Basic(NamedTuple):
    """The blocks of ResNet-18, -34 and CIFAR's ResNets: two 3x3 convolutions."""

    def build(self, s: Shape) -> Block:
        layers = (
            Layer(s.inputs, s.outputs, 3, s.stride, s.groups),
            Layer(s.outputs, s.outputs, 3, groups=s.groups, activation="none"),
        )
        return Block(layers, _resnet_shortcut(s))


class Bottleneck(NamedTuple):
    """The blocks of ResNet-50 and ResNeXt: 1x1, 3x3 (which has the stride) and 1x1.

    Attributes:
        expansion: the output's channels over those inside.
        cardinality: groups of the 3x3 convolution (ResNeXt).
    """

    expansion: int = 4
    cardinality: int = 1

    def build(self, s: Shape) -> Block:
        width = s.outputs // self.expansion
        inner = math.lcm(s.groups, self.cardinality)
        layers = (
            Layer(s.inputs, width, 1, groups=s.groups),
            Layer(width, width, 3, s.stride, inner),
            Layer(width, s.outputs, 1, groups=s.groups, activation="none"),
        )
        return Block(layers, _resnet_shortcut(s))


class InvertedResidual(NamedTuple):
    """The blocks of MobileNetV2: 1x1 that expands, depthwise 3x3, linear 1x1.

    Attributes:
        expansion: channels inside over those of the input.
    """

    expansion: int = 6

    def build(self, s: Shape) -> Block:
        width = s.inputs * self.expansion
        layers = []
        if self.expansion != 1:
            layers.append(Layer(s.inputs, width, 1, groups=s.groups, activation="relu6"))
        layers.append(Layer(width, width, 3, s.stride, groups=width, activation="relu6"))
        layers.append(Layer(width, s.outputs, 1, groups=s.groups, activation="none"))
        same = s.stride == 1 and s.inputs == s.outputs
        return Block(layers, "identity" if same else "none", activation="none")


Family = Basic | Bottleneck | InvertedResidual


def _resnet_shortcut(s: Shape) -> Layer | str:
    if s.stride == 1 and s.inputs == s.outputs:
        return "identity"
    return Layer(s.inputs, s.outputs, 1, s.stride, s.groups, activation="none")


def initialise(network: nn.Module) -> None:
    """Convolutions as He et al. do it for ReLU, in place. Batch norms begin as the identity."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

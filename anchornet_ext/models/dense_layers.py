"""The layers that MSDNet and RANet share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNormReLU(nn.Module):
    """Convolution, batch norm, ReLU; padded so that stride 1 keeps the size."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, bias: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=bias)
        self.norm: nn.Module = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        # Hundreds of them run one after the other: calling what a folded norm leaves takes time.
        if not isinstance(self.norm, nn.Identity):
            x = self.norm(x)
        return F.relu(x, inplace=True)


class Bottleneck(nn.Module):
    """1x1 to at most `width` times the outputs, then 3x3 ("Regular-Conv", "Strided-Conv")."""

    def __init__(self, inputs: int, outputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        inner = min(inputs, width * outputs)
        self.reduce = ConvNormReLU(inputs, inner, kernel=1)
        self.spread = ConvNormReLU(inner, outputs, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.spread(self.reduce(x))
        return out


class LargeStem(nn.Module):
    """7x7 with stride 2 and max pooling: for ImageNet's images."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv = ConvNormReLU(3, outputs, kernel=7, stride=2, bias=True)

    def forward(self, images: Tensor) -> Tensor:
        return F.max_pool2d(self.conv(images), 3, 2, 1)


class ExitClassifier(nn.Module):
    """Two strided 3x3 convolutions, average pooling, linear: features (B, C, h, w) to (B, n).

    Args:
        inputs: C.
        hidden: channels of the convolutions.
        num_classes: n.
    """

    def __init__(self, inputs: int, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            ConvNormReLU(inputs, hidden, stride=2), ConvNormReLU(hidden, hidden, stride=2)
        )
        self.linear = nn.Linear(hidden, num_classes)

    def forward(self, features: Tensor) -> Tensor:
        # At the published sizes 2x2 values are left, so this is their 2x2 average pooling; it is
        # defined for other sizes as well.
        pooled = self.convolutions(features).mean(dim=(2, 3))  # (B, hidden)
        logits: Tensor = self.linear(pooled)
        return logits


def stem_of(kind: str, outputs: int) -> nn.Module:
    """The first layer, images (B, 3, H, W) to (B, outputs, h, w), of one of STEMS."""
    return LargeStem(outputs) if kind == "large" else ConvNormReLU(3, outputs)


def classifier_of(kind: str, inputs: int, num_classes: int) -> ExitClassifier:
    """An exit for (B, inputs, h, w) of a network with this stem, one of STEMS."""
    return ExitClassifier(inputs, 128 if kind == "small" else inputs, num_classes)


class DenseLayer(nn.Module):
    """Appends `growth` channels: (B, C, h, w) to (B, C + growth, h, w)."""

    def __init__(self, inputs: int, growth: int, width: int) -> None:
        super().__init__()
        self.same = Bottleneck(inputs, growth, width)

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([features, self.same(features)], dim=1)


def resized(features: Tensor, size: torch.Size) -> Tensor:
    """`features` (B, C, h, w) at another (h, w), bilinear, corners aligned."""
    if features.shape[2:] == size:
        return features  # what the interpolation gives, without its copy
    return F.interpolate(features, size=list(size), mode="bilinear", align_corners=True)


def initialise(module: nn.Module) -> None:
    """Weights of convolutions from N(0, 2 / (k * k * outputs)), biases of linear layers 0.

    He et al.'s rule over a convolution's outputs, as the authors' code has it. Batch norm is at
    scale 1 and shift 0 already.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            fan_out = part.kernel_size[0] * part.kernel_size[1] * part.out_channels
            nn.init.normal_(part.weight, 0.0, math.sqrt(2 / fan_out))
        elif isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)

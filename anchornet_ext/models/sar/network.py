"""Networks of SAR modules."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .blocks import Family, Layer, Shape, initialise
from .module import Choose, ModuleOptions, SARModule
from .region_selection import RegionSelector, decide, sample


class Stage(NamedTuple):
    """One stage of a network.

    Attributes:
        channels: of its output.
        blocks: how many, that which merges among them.
        stride: of the merging block of a SAR module, of the first block of an ordinary stage.
        family: of its blocks; None is the network's.
    """

    channels: int
    blocks: int
    stride: int
    family: Family | None = None


class Architecture(NamedTuple):
    """A network before anybody says how many classes it has.

    Attributes:
        family: of the blocks.
        stem: "imagenet" (7x7, stride 2, and max pooling), "cifar" (3x3) or "mobilenet".
        stem_channels: what the modules get.
        modules: the stages that become SAR modules.
        tail: the ordinary stages after them.
        head_channels: of a 1x1 convolution before the classifier, or 0 for none.
        cells: K.
    """

    family: Family
    stem: str
    stem_channels: int
    modules: Sequence[Stage]
    tail: Sequence[Stage] = ()
    head_channels: int = 0
    cells: int = 7


class SARNetwork(nn.Module):
    """A classification network whose stages are SAR modules, run densely.

    In training the masks are sampled, in evaluation they are decided. Every convolution runs over
    whole maps: `SparseSAR` is the network that skips what masks leave out.

    Args:
        architecture: of the network.
        num_classes: n.
        options: of the modules.

    Attributes:
        temperature: tau of the sampling; whoever trains sets it.

    Raises:
        ValueError: an option that does not fit the architecture, or num_classes below 1.
    """

    def __init__(
        self, architecture: Architecture, num_classes: int, options: ModuleOptions | None = None
    ) -> None:
        super().__init__()
        options = options or ModuleOptions(cells=architecture.cells)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}")
        for name, value in options._asdict().items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.num_classes = num_classes
        self.options = options
        self.temperature = 1.0
        self.stem = _stem(architecture)
        channels = architecture.stem_channels
        modules: list[SARModule] = []
        for stage in architecture.modules:
            modules.append(
                SARModule(
                    stage.family or architecture.family,
                    channels,
                    stage.channels,
                    stage.blocks - 1,
                    stage.stride,
                    options,
                )
            )
            channels = stage.channels
        self.sar_modules = nn.ModuleList(modules)
        self.tail, channels = _tail(architecture, channels)
        self.classifier = nn.Linear(channels, num_classes)
        initialise(self)
        for module in self.modules():
            if isinstance(module, RegionSelector):
                module.start_with_everything()

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) to logits (B, n)."""
        choose = partial(sample, temperature=self.temperature) if self.training else decide
        return self.run(images, choose)[0]

    def run(self, images: Tensor, choose: Choose) -> tuple[Tensor, list[Tensor]]:
        """Logits (B, n), and the masks (L, B, G, rows, columns) of each module.

        Args:
            images: (B, 3, H, W), normalised.
            choose: makes masks (bool, or numbers 0 and 1) of logits (L, B, 2, G, rows, columns).
        """
        x = self.stem(images)
        masks = []
        for module in self.sar_modules:
            x, mask = module(x, choose)
            masks.append(mask)
        return self.classify(x), masks

    def classify(self, x: Tensor) -> Tensor:
        """What the last module made, (B, C, h, w), to logits (B, n)."""
        logits: Tensor = self.classifier(self.tail(x).mean((2, 3)))
        return logits


def _stem(architecture: Architecture) -> nn.Module:
    channels = architecture.stem_channels
    if architecture.stem == "cifar":
        return Layer(3, channels, 3)
    if architecture.stem == "imagenet":
        return nn.Sequential(
            nn.Conv2d(3, channels, 7, 2, padding=3, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, padding=1),
        )
    if architecture.stem == "mobilenet":
        # Where ResNets pool, here the first inverted residual has the stride: the modules that
        # follow shrink the map at their ends and not, as MobileNetV2's stages, at their beginnings.
        return nn.Sequential(
            Layer(3, 32, 3, 2, activation="relu6"),
            Layer(32, 32, 3, 2, groups=32, activation="relu6"),
            Layer(32, channels, 1, activation="none"),
        )
    raise ValueError(f"stem must be imagenet, cifar or mobilenet, got {architecture.stem!r}")


def _tail(architecture: Architecture, channels: int) -> tuple[nn.Module, int]:
    """The ordinary stages, and their channels."""
    layers: list[nn.Module] = []
    for stage in architecture.tail:
        family = stage.family or architecture.family
        for n in range(stage.blocks):
            layers.append(family.build(Shape(channels, stage.channels, 1 if n else stage.stride)))
            channels = stage.channels
    if architecture.head_channels:
        layers.append(Layer(channels, architecture.head_channels, 1, activation="relu6"))
        channels = architecture.head_channels
    return nn.Sequential(*layers), channels


def mean_activation(masks: Sequence[Tensor]) -> Tensor:
    """The activation rate of each image over all blocks (Eq. 7): () per image.

    Args:
        masks: (L, B, G, rows, columns) of each module.

    Returns:
        (B,) float32 in [0, 1], the mean over the blocks.
    """
    return torch.cat([mask.float().mean((2, 3, 4)) for mask in masks]).mean(0)

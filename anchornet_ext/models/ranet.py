"""RANet: Resolution Adaptive Networks for Efficient Inference (CVPR 2020)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .dense_layers import (
    Bottleneck,
    ConvNormReLU,
    DenseLayer,
    classifier_of,
    initialise,
    resized,
    stem_of,
)
from .exits import IMAGES, ExitNetwork, Step
from .network_config import (
    SPACINGS,
    STEMS,
    kept_channels,
    require,
    require_choice,
    require_factors,
)


@dataclass(frozen=True)
class RANetConfig:
    """The shape of a RANet; the defaults are those for CIFAR.

    Lists go from the lowest to the highest resolution, one entry for each of the H sub-networks.

    Attributes:
        scales: each sub-network's resolution: 1 is the lowest, each further one has twice the side.
            Not falling; a sub-network may have the resolution of the one before.
        factors: of the channels.
        bottlenecks: the width of a 1x1 convolution in multiples of the 3x3's outputs.
        blocks: of the first sub-network.
        more_blocks: how many each sub-network has more than the one before; they carry its exits.
        step: layers of each block ("even"), or by how many layers each block of a sub-network is
            longer than the one before ("growing").
        spacing: one of SPACINGS.
        channels: of the base features, times the factor.
        growth: channels that a layer adds, times the factor.
        compress: share of what a layer adds that comes from the sub-network before, and how much a
            block takes over from the end of its counterpart there, as a share of its channels.
        reduction: share of the channels that a transition keeps.
        stem: "small": 3x3, for CIFAR; "large": 7x7 with stride 2 and pooling, for ImageNet.

    Raises:
        ValueError: a value out of its range, named.
    """

    scales: tuple[int, ...] = (1, 2, 3, 3)
    factors: tuple[int, ...] = (4, 2, 1, 1)
    bottlenecks: tuple[int, ...] = (4, 2, 1, 1)
    blocks: int = 2
    more_blocks: int = 2
    step: int = 4
    spacing: str = "even"
    channels: int = 16
    growth: int = 6
    compress: float = 0.25
    reduction: float = 0.5
    stem: str = "small"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", require_factors(self.scales, "scales"))
        for name in ("factors", "bottlenecks"):
            values = require_factors(getattr(self, name), name, len(self.scales))
            object.__setattr__(self, name, values)
        rises = [b - a for a, b in zip(self.scales, self.scales[1:], strict=False)]
        require(
            self.scales[0] == 1 and all(rise in (0, 1) for rise in rises),
            "scales",
            "1, and then each the same as the one before or 1 more",
            self.scales,
        )
        for name in ("blocks", "more_blocks", "step", "channels"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        require_choice(self.spacing, "spacing", SPACINGS)
        require_choice(self.stem, "stem", STEMS)
        require(0 < self.compress < 1, "compress", "within (0, 1)", self.compress)
        least = min(self.growth * f for f in self.factors)
        require(
            math.floor(least * self.compress) >= 1,
            "growth",
            f"at least 1 / compress = {1 / self.compress:g} in each sub-network",
            self.growth,
        )
        require(0 < self.reduction <= 1, "reduction", "within (0, 1]", self.reduction)

    def blocks_of(self, network: int) -> int:
        """How many blocks sub-network `network` (from 1; 0 for a sub-network 0 without any) has."""
        return 0 if network == 0 else self.blocks + self.more_blocks * (network - 1)

    def layers_of_block(self, block: int) -> int:
        """How many layers the block with this number (from 1) has, in every sub-network."""
        return self.step if self.spacing == "even" else self.step * block

    def is_strided(self, network: int, block: int) -> bool:
        """Whether the block halves the resolution at its end (section 3.3.2).

        Scale s takes s - 1 halvings: in the blocks that fuse the last exits of the s - 1
        sub-networks before.
        """
        first = network - self.scales[network - 1] + 1
        return any(block == self.blocks_of(h) for h in range(max(first, 1), network))

    def has_transition(self, network: int, block: int) -> bool:
        """Whether a 1x1 convolution reduces the channels after the block."""
        scale, blocks = self.scales[network - 1], self.blocks_of(network)
        return any(block == part * blocks // scale for part in range(1, scale))


#: The published configurations; the last two are the other ones that the authors' code names.
RANET_PRESETS = {
    "cifar": RANetConfig(),
    "imagenet": RANetConfig(scales=(1, 2, 3, 4), step=8, growth=16, stem="large"),
    "cifar-growing": RANetConfig(
        scales=(1, 2, 3), factors=(4, 2, 1), bottlenecks=(4, 2, 1), step=2, spacing="growing"
    ),
    "imagenet-wide": RANetConfig(
        scales=(1, 2, 3, 4),
        factors=(4, 2, 2, 1),
        bottlenecks=(4, 2, 2, 1),
        step=8,
        channels=32,
        growth=16,
        stem="large",
    ),
}


class FusionLayer(nn.Module):
    """A layer of a fusion block (Figure 3 b, c): concat[features resized, up-conv, conv].

    lower (B, C', h', w') of the sub-network before and features (B, C, h, w) to
    (B, C + growth, h, w), of which floor(compress * growth) channels come from `lower`; with
    stride 2 to half the size.
    """

    def __init__(
        self,
        lower: int,
        inputs: int,
        growth: int,
        widths: tuple[int, int],
        compress: float,
        stride: int,
    ) -> None:
        super().__init__()
        from_lower = math.floor(growth * compress)
        self.up = Bottleneck(lower, from_lower, widths[0])
        self.same = Bottleneck(inputs, growth - from_lower, widths[1], stride=stride)

    def forward(self, lower: Tensor, features: Tensor) -> Tensor:
        same = self.same(features)
        size = same.shape[2:]
        parts = [resized(features, size), resized(self.up(lower), size), same]
        return torch.cat(parts, dim=1)


class FusionEnd(nn.Module):
    """The end of a fusion block: appends what its counterpart below ended with, compressed."""

    def __init__(self, lower: int, outputs: int) -> None:
        super().__init__()
        self.up = ConvNormReLU(lower, outputs, kernel=1)

    def forward(self, lower: Tensor, features: Tensor) -> Tensor:
        return torch.cat([features, resized(self.up(lower), features.shape[2:])], dim=1)


class RANet(ExitNetwork):
    """Sub-networks of rising resolution, each fusing the features of the one before.

    The exits of a sub-network are at its last blocks, at the lowest resolution. A sub-network
    starts only when an image has passed all exits of the one before. Only the base features are
    made from the highest resolution down and so all at the beginning ("Initial Layer").

    Convolutions come before batch norm and ReLU, as in the authors' code and weights; the paper
    writes them after. Images should have sides of at least 2^(scales + 1) pixels, four times that
    with the large stem.
    """

    def __init__(
        self,
        num_classes: int,
        config: RANetConfig | None = None,
        schedule: str = "blocks",
    ) -> None:
        require(num_classes >= 1, "num_classes", "at least 1", num_classes)
        config = config or RANetConfig()
        steps = dict(_steps(config, num_classes))
        exits = [name for name in steps if name.startswith("exit")]
        super().__init__(steps, exits, num_classes, schedule)
        self.config = config
        for name, module in self.steps.items():
            if not name.startswith("base"):  # torch's initialisation, in the authors' code as well
                initialise(module)

    @classmethod
    def preset(cls, name: str, num_classes: int) -> RANet:
        """A published configuration, one of RANET_PRESETS.

        Raises:
            ValueError: an unknown name.
        """
        require_choice(name, "preset", tuple(RANET_PRESETS))
        return cls(num_classes, RANET_PRESETS[name])


class _Features(NamedTuple):
    """What a step makes."""

    step: str
    channels: int


def _steps(config: RANetConfig, num_classes: int) -> Iterator[tuple[str, Step]]:
    yield from _base_features(config)
    lower: list[list[_Features]] = []  # of each block of the sub-network before, its layers'
    exit_number = 0
    for network, factor in enumerate(config.factors, start=1):
        current: list[list[_Features]] = []
        newest = _Features(f"base{network}", config.channels * factor)
        for block in range(1, config.blocks_of(network) + 1):
            below = lower[block - 1] if block <= len(lower) else None
            made = [newest]
            for features, step in _layers(config, network, block, newest, below):
                yield features.step, step
                made.append(features)
            current.append(made)
            newest = made[-1]
            prefix = f"net{network}_block{block}"
            if below is not None:
                added = math.floor(newest.channels * config.compress)
                end = FusionEnd(below[-1].channels, added)
                step = Step(end, (below[-1].step, newest.step))
                newest = _Features(f"{prefix}_end", newest.channels + added)
                yield newest.step, step
            if config.has_transition(network, block):
                kept = kept_channels(newest.channels, config.reduction)
                transition = ConvNormReLU(newest.channels, kept, kernel=1)
                step = Step(transition, (newest.step,))
                newest = _Features(f"{prefix}_transition", kept)
                yield newest.step, step
            if below is None:
                exit_number += 1
                classifier = classifier_of(config.stem, newest.channels, num_classes)
                yield f"exit{exit_number}", Step(classifier, (newest.step,))
        lower = current


def _base_features(config: RANetConfig) -> Iterator[tuple[str, Step]]:
    """The initial layer: the input of each sub-network, from the highest resolution down."""
    highest = len(config.scales)
    outputs = config.channels * config.factors[-1]
    yield f"base{highest}", Step(stem_of(config.stem, outputs), (IMAGES,))
    for network in range(highest - 1, 0, -1):
        inputs, outputs = outputs, config.channels * config.factors[network - 1]
        stride = 1 + config.scales[network] - config.scales[network - 1]
        convolution = ConvNormReLU(inputs, outputs, stride=stride)
        yield f"base{network}", Step(convolution, (f"base{network + 1}",))


def _layers(
    config: RANetConfig,
    network: int,
    block: int,
    features: _Features,
    below: list[_Features] | None,
) -> Iterator[tuple[_Features, Step]]:
    """The layers of a block: a dense one, or with `below` one that fuses."""
    growth = config.growth * config.factors[network - 1]
    width = config.bottlenecks[network - 1]
    layers = config.layers_of_block(block)
    for layer in range(1, layers + 1):
        name = f"net{network}_block{block}_layer{layer}"
        if below is None:
            module: nn.Module = DenseLayer(features.channels, growth, width)
            inputs: tuple[str, ...] = (features.step,)
        else:
            lower = below[layer - 1]
            stride = 2 if layer == layers and config.is_strided(network, block) else 1
            widths = (config.bottlenecks[network - 2], width)
            module = FusionLayer(
                lower.channels, features.channels, growth, widths, config.compress, stride
            )
            inputs = (lower.step, features.step)
        features = _Features(name, features.channels + growth)
        yield features, Step(module, inputs)

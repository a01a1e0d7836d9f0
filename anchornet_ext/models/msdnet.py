"""MSDNet: Multi-Scale Dense Networks for Resource Efficient Image Classification (ICLR 2018)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .dense_layers import (
    Bottleneck,
    ConvNormReLU,
    DenseLayer,
    classifier_of,
    initialise,
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
class MSDNetConfig:
    """The shape of an MSDNet; the defaults are those for CIFAR.

    Attributes:
        blocks: T: one exit at the end of each block.
        base: layers of the first block.
        step: layers of each further block ("even"), or by how many each block is longer ("growing":
            the i-th further block has step * i + 1).
        spacing: one of SPACINGS.
        channels: of the stem's finest scale, times the first of `factors`.
        growth: channels that a layer adds, times the factor of its scale.
        factors: of the channels, one for each scale, from the finest to the coarsest.
        bottlenecks: for each scale, the width of a 1x1 convolution in multiples of the 3x3's
            outputs.
        reduction: share of the channels that a transition keeps, where a scale ends.
        stem: "small": 3x3, for CIFAR; "large": 7x7 with stride 2 and pooling, for ImageNet.

    Raises:
        ValueError: a value out of its range, named.
    """

    blocks: int = 7
    base: int = 4
    step: int = 2
    spacing: str = "even"
    channels: int = 16
    growth: int = 6
    factors: tuple[int, ...] = (1, 2, 4)
    bottlenecks: tuple[int, ...] = (1, 2, 4)
    reduction: float = 0.5
    stem: str = "small"

    def __post_init__(self) -> None:
        for name in ("blocks", "base", "step", "channels"):
            require(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        # Half of what a layer adds comes from its own scale, half from the finer one.
        require(self.growth >= 2 and self.growth % 2 == 0, "growth", "even", self.growth)
        require_choice(self.spacing, "spacing", SPACINGS)
        require_choice(self.stem, "stem", STEMS)
        object.__setattr__(self, "factors", require_factors(self.factors, "factors"))
        widths = require_factors(self.bottlenecks, "bottlenecks", len(self.factors))
        object.__setattr__(self, "bottlenecks", widths)
        require(0 < self.reduction <= 1, "reduction", "within (0, 1]", self.reduction)

    @property
    def layers_of_block(self) -> tuple[int, ...]:
        """How many layers each block has."""
        even = self.spacing == "even"
        further = (self.step if even else self.step * i + 1 for i in range(1, self.blocks))
        return (self.base, *further)


_IMAGENET = MSDNetConfig(
    blocks=5,
    channels=32,
    growth=16,
    factors=(1, 2, 4, 4),
    bottlenecks=(1, 2, 4, 4),
    stem="large",
)
#: The published configurations.
MSDNET_PRESETS = {
    "cifar-anytime": MSDNetConfig(),
    "cifar-batch": MSDNetConfig(blocks=5, base=1, step=1, spacing="growing"),
    "imagenet-base4": replace(_IMAGENET, base=4, step=4),
    "imagenet-base6": replace(_IMAGENET, base=6, step=6),
    "imagenet-base7": replace(_IMAGENET, base=7, step=7),
}


class MultiScaleLayer(nn.Module):
    """One scale of a layer: from the finer scale and its own (Figure 2 of the paper).

    finer (B, C', 2h, 2w) and same (B, C, h, w) to (B, C + growth, h, w): `same`, then half of the
    growth from the finer scale, then half from its own.
    """

    def __init__(
        self, finer: int, same: int, growth: int, finer_width: int, same_width: int
    ) -> None:
        super().__init__()
        self.finer = Bottleneck(finer, growth // 2, finer_width, stride=2)
        self.same = Bottleneck(same, growth // 2, same_width)

    def forward(self, finer: Tensor, same: Tensor) -> Tensor:
        return torch.cat([same, self.finer(finer), self.same(same)], dim=1)


class MSDNet(ExitNetwork):
    """A network of several scales with an exit after each block, at the coarsest scale.

    The layers are split evenly into as many parts as there are scales, and each part keeps one
    scale less than the one before ("prune max" in the authors' code); where a scale ends, a 1x1
    convolution halves the channels of those that go on.

    Images should have sides of at least 2^(scales + 1) pixels, four times that with the large stem.
    """

    def __init__(
        self,
        num_classes: int,
        config: MSDNetConfig | None = None,
        schedule: str = "blocks",
    ) -> None:
        require(num_classes >= 1, "num_classes", "at least 1", num_classes)
        config = config or MSDNetConfig()
        steps = dict(_steps(config, num_classes))
        exits = [f"exit{k}" for k in range(1, config.blocks + 1)]
        super().__init__(steps, exits, num_classes, schedule)
        self.config = config
        initialise(self)

    @classmethod
    def preset(cls, name: str, num_classes: int) -> MSDNet:
        """A published configuration, one of MSDNET_PRESETS.

        Raises:
            ValueError: an unknown name.
        """
        require_choice(name, "preset", tuple(MSDNET_PRESETS))
        return cls(num_classes, MSDNET_PRESETS[name])


def first_scale(config: MSDNetConfig, layer: int) -> int:
    """The finest scale that `layer` (from 1) still has."""
    total = sum(config.layers_of_block)
    return (layer - 1) // math.ceil(total / len(config.factors))


def _steps(config: MSDNetConfig, num_classes: int) -> Iterator[tuple[str, Step]]:
    factors, widths = config.factors, config.bottlenecks
    scales = range(len(factors))
    source: dict[int, str] = {}  # scale -> the step that made its newest features
    for scale in scales:
        outputs = config.channels * factors[scale]
        source[scale] = f"stem_scale{scale}"
        if scale == 0:
            module = stem_of(config.stem, outputs)
            yield source[scale], Step(module, (IMAGES,))
        else:
            module = ConvNormReLU(config.channels * factors[scale - 1], outputs, stride=2)
            yield source[scale], Step(module, (source[scale - 1],))
    channels = config.channels  # of each scale, in units of its factor
    layer = 0
    for block, layers in enumerate(config.layers_of_block, start=1):
        for _ in range(layers):
            layer += 1
            finest = first_scale(config, layer)
            made: dict[int, str] = {}
            for scale in scales[finest:]:
                made[scale] = f"layer{layer}_scale{scale}"
                same, growth = channels * factors[scale], config.growth * factors[scale]
                if scale - 1 in source:
                    module = MultiScaleLayer(
                        channels * factors[scale - 1],
                        same,
                        growth,
                        widths[scale - 1],
                        widths[scale],
                    )
                    yield made[scale], Step(module, (source[scale - 1], source[scale]))
                else:
                    module = DenseLayer(same, growth, widths[scale])
                    yield made[scale], Step(module, (source[scale],))
            channels += config.growth
            if min(made) > min(source):
                kept = kept_channels(channels, config.reduction)
                for scale in made:
                    module = ConvNormReLU(
                        channels * factors[scale], kept * factors[scale], kernel=1
                    )
                    name = f"{made[scale]}_transition"
                    yield name, Step(module, (made[scale],))
                    made[scale] = name
                channels = kept
            source = made
        features = channels * factors[-1]
        classifier = classifier_of(config.stem, features, num_classes)
        yield f"exit{block}", Step(classifier, (source[scales[-1]],))

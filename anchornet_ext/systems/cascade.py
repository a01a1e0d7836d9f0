"""A static cascade: a small network first, and a large one for what it is not sure of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from anchornet_ext._images import require_normalised_images
from anchornet_ext._options import need, option
from anchornet_ext.models import build_backbone, count_macs, require_input_size
from anchornet_ext.models.resizing import resized_square
from anchornet_ext.training.config import Stage, StageConfig
from anchornet_ext.training.distributed import World
from anchornet_ext.training.plan import Plan, Supply
from anchornet_ext.training.stages import GlanceTask
from anchornet_ext.training.task import Task

from .common.backbone_start import initial_backbone, require_start
from .common.network_system import NetworkSystem


class Cascade(nn.Module):
    """Two classification networks of the same classes, each at its own size of image.

    Args:
        small, large: (B, 3, P, P) -> (B, n).
        sizes: P of each, in pixels; the images are resized to it.
        num_classes: n.

    `forward`: images (B, 3, H, W) -> (2, B, n), the logits of both.
    """

    num_exits = 2

    def __init__(
        self, small: nn.Module, large: nn.Module, sizes: tuple[int, int], num_classes: int
    ) -> None:
        super().__init__()
        self.small = small
        self.large = large
        self.sizes = sizes
        self.num_classes = num_classes
        self._macs: tuple[int, int] | None = None

    def logits(self, images: Tensor, exit_index: int) -> Tensor:
        """(B, n) of one of the networks."""
        network = self.large if exit_index else self.small
        result: Tensor = network(resized_square(images, self.sizes[exit_index]))
        return result

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return torch.stack([self.logits(images, 0), self.logits(images, 1)])

    def begin(self, images: Tensor) -> CascadeProgress:
        """Starts on a batch (see `models.exits.Progress`); nothing is computed yet."""
        if self.training:
            raise ValueError("the cascade is in training mode: call eval() before begin()")
        require_normalised_images(images)
        return CascadeProgress(self, images)

    def whole_networks(self, image_size: tuple[int, int]) -> dict[str, tuple[int, int]]:
        """Names of the submodules that run in one piece, and the (H, W) of what they see."""
        small, large = self.sizes
        return {"small": (small, small), "large": (large, large)}

    def macs_per_exit(self, image_size: tuple[int, int]) -> tuple[int, ...]:
        """Of the small network, and of both: images of any size cost the same."""
        if self._macs is None:
            small, large = (
                count_macs(network, (3, side, side))
                for network, side in zip((self.small, self.large), self.sizes, strict=True)
            )
            self._macs = (small, small + large)
        return self._macs


class CascadeProgress:
    """A batch on its way through a cascade."""

    def __init__(self, cascade: Cascade, images: Tensor) -> None:
        self._cascade = cascade
        self._images = images
        self._exit = 0

    def next_logits(self) -> Tensor:
        """(B, n) of the next network."""
        if self._exit == self._cascade.num_exits:
            raise RuntimeError("both networks have run")
        logits = self._cascade.logits(self._images, self._exit)
        self._exit += 1
        return logits

    def keep(self, rows: Tensor) -> None:
        """Goes on with these of the images."""
        self._images = self._images[rows]


@dataclass(frozen=True)
class CascadeOptions:
    """Which networks, at which sizes, and what they start from."""

    small_backbone: str = option(
        "mobilenet_v3_small", "the first network, of torchvision or timm/NAME", metavar="NAME"
    )
    small_input: int = option(96, "side of the image that it sees", metavar="PIXELS")
    small_weights: Path | None = option(
        None, "start it from a safetensors file", convert=Path, metavar="FILE", start=True
    )
    large_backbone: str = option(
        "resnet50", "the second network, of torchvision or timm/NAME", metavar="NAME"
    )
    large_input: int = option(224, "side of the image that it sees", metavar="PIXELS")
    large_weights: Path | None = option(
        None, "start it from a safetensors file", convert=Path, metavar="FILE", start=True
    )
    pretrained: bool = option(False, "start both from their published ImageNet weights", start=True)

    def __post_init__(self) -> None:
        for part in ("small", "large"):
            size, weights = getattr(self, f"{part}_input"), getattr(self, f"{part}_weights")
            need(size >= 1, f"{part}_input", "at least 1 pixel", size)
            if self.pretrained and weights is not None:
                raise ValueError(f"--pretrained and --{part}-weights exclude each other")


_RECIPE = StageConfig(epochs=100, lr=0.1, schedule="cosine", nesterov=True)


class CascadeSystem(NetworkSystem):
    """The oldest dynamic network there is, and a fair measure for the others."""

    name = "cascade"
    title = "Cascade"
    summary = "a small network, then a large one for what it is not sure of"
    Options = CascadeOptions
    tiny = (
        *("--small-backbone", "cifar/resnet8", "--small-input", "16"),
        *("--large-backbone", "cifar/resnet8", "--large-input", "32"),
        *("--crop-size", "32", "--resize-size", "32"),
    )
    stages = (
        Stage("small", _RECIPE, {"size", "dropout"}, "the first network, at its own size"),
        Stage("large", _RECIPE, {"size", "dropout"}, "the second network, at its own size"),
    )
    parts: ClassVar[Mapping[str, str]] = {"small": "small", "large": "large"}

    def build(self, options: CascadeOptions, num_classes: int) -> nn.Module:
        """See `NetworkSystem.build`."""
        return Cascade(
            build_backbone(options.small_backbone, num_classes),
            build_backbone(options.large_backbone, num_classes),
            (options.small_input, options.large_input),
            num_classes,
        )

    def require(self, plan: Plan, stages: Sequence[str], world: World) -> None:
        """Both networks take their sizes, and the weights to start from fit."""
        cascade = self.build(plan.options, plan.num_classes)
        for stage in self.parts:
            network = cascade.get_submodule(stage)
            require_input_size(network, getattr(plan.options, f"{stage}_input"))
        macs = cascade.macs_per_exit((0, 0))  # type: ignore[operator]
        if macs[0] > macs[1] - macs[0]:
            raise ValueError(
                f"the first network costs {macs[0]:,} multiply-adds and the second one "
                f"{macs[1] - macs[0]:,}: the cheaper one must come first"
            )
        for stage in stages:
            require_start(
                getattr(plan.options, f"{stage}_backbone"),
                plan.num_classes,
                pretrained=plan.options.pretrained,
                weights=getattr(plan.options, f"{stage}_weights"),
            )

    def task(self, stage: str, plan: Plan, supply: Supply) -> Task:
        """One of the networks by itself, on the photo's crop resized to its size."""
        options: CascadeOptions = plan.options
        name, side = getattr(options, f"{stage}_backbone"), getattr(options, f"{stage}_input")
        network = initial_backbone(
            name,
            plan.num_classes,
            pretrained=options.pretrained,
            weights=getattr(options, f"{stage}_weights"),
        )
        config = replace(plan.configs[stage], size=side)
        data = supply.batches(plan, config)
        return GlanceTask(stage, network, config, data, plan.preprocessing, plan.num_classes)


SYSTEM = CascadeSystem()

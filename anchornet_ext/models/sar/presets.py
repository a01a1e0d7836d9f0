"""The networks of the paper, by name."""

from __future__ import annotations

import difflib

from .blocks import Basic, Bottleneck, InvertedResidual
from .module import ModuleOptions
from .network import Architecture, SARNetwork, Stage


def _resnet(
    family: Basic | Bottleneck, channels: int, blocks: tuple[int, int, int, int]
) -> Architecture:
    """Table X: three modules, the first two halving the map at their ends; the last stage stays."""
    widths = [channels * 2**n for n in range(4)]
    modules = [
        Stage(width, count, stride)
        for width, count, stride in zip(widths[:3], blocks[:3], (2, 2, 1), strict=True)
    ]
    return Architecture(family, "imagenet", 64, modules, [Stage(widths[3], blocks[3], 2)])


def _cifar_resnet(blocks: int, width: int) -> Architecture:
    """All three stages are modules: only then do the costs come out as in Table I and II.

    Cells are 8, 4 and 2 pixels wide: the paper does not say how many there are on CIFAR.
    """
    channels = [16 * width * 2**n for n in range(3)]
    modules = [Stage(c, blocks, stride) for c, stride in zip(channels, (2, 2, 1), strict=True)]
    return Architecture(Basic(), "cifar", 16 * width, modules, cells=4)


def _mobilenet_v2() -> Architecture:
    modules = [Stage(24, 2, 2), Stage(32, 3, 2), Stage(64, 4, 1), Stage(96, 3, 1)]
    tail = [Stage(160, 3, 2), Stage(320, 1, 1)]
    return Architecture(InvertedResidual(), "mobilenet", 16, modules, tail, head_channels=1280)


ARCHITECTURES = {
    "resnet18": _resnet(Basic(), 64, (2, 2, 2, 2)),
    "resnet34": _resnet(Basic(), 64, (3, 4, 6, 3)),
    "resnet50": _resnet(Bottleneck(), 256, (3, 4, 6, 3)),
    "resnext50_32x4d": _resnet(Bottleneck(expansion=2, cardinality=32), 256, (3, 4, 6, 3)),
    "mobilenet_v2": _mobilenet_v2(),
    # Its CIFAR tables are of ResNet-32 twice as wide ("ResNet32x2", 271 M).
    "resnet20": _cifar_resnet(3, 1),
    "resnet32": _cifar_resnet(5, 1),
    "resnet32x2": _cifar_resnet(5, 2),
}


def build_sar(
    name: str,
    num_classes: int,
    *,
    groups: int = 2,
    stride: int = 2,
    alpha: int = 2,
    beta: int = 1,
    cells: int | None = None,
) -> SARNetwork:
    """A SAR network with random weights, whose masks select everything.

    Args:
        name: of the backbone: resnet18, resnet34, resnet50, resnext50_32x4d or mobilenet_v2 for
            photos, resnet20, resnet32 or resnet32x2 for CIFAR.
        num_classes: n.
        groups, stride, alpha, beta, cells: see `ModuleOptions`; the paper's G2 s2 alpha2 beta1 and
            7 x 7 cells (4 x 4 on CIFAR) by default.

    Returns:
        In training mode; maps (B, 3, H, W) to logits (B, n).

    Raises:
        ValueError: the name is unknown, or an option does not fit the backbone.
    """
    architecture = ARCHITECTURES.get(name)
    if architecture is None:
        close = difflib.get_close_matches(name, ARCHITECTURES, n=3, cutoff=0.4)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        raise ValueError(
            f"there is no SAR network on {name!r}{hint} (there is one on each of "
            f"{', '.join(ARCHITECTURES)})"
        )
    cells = architecture.cells if cells is None else cells
    return SARNetwork(architecture, num_classes, ModuleOptions(groups, stride, alpha, beta, cells))

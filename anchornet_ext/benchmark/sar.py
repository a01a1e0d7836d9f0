"""Suite `sar`: SAR on its selected cells, against itself run densely and against its backbone.

"sparse" computes the cells that its masks select, "masked" the whole maps with the same masks (as
in training), "backbone" is the network that SAR was made of and has no masks. All are tuned in the
same way (`models.tuning`) and take turns in one run. Weights are random. The masks are the
network's own decisions, shifted so that each block refines the wanted share of the cells of these
images, or drawn: every cell of every image, group and block for itself, at that rate.

`--compiled` puts all three through torch.compile, of the sparse network its dense parts.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from anchornet_ext.models import build_backbone, count_macs
from anchornet_ext.models.cifar_resnet import CifarResNet
from anchornet_ext.models.sar import (
    ARCHITECTURES,
    SARNetwork,
    SparseSAR,
    build_sar,
    decide,
    sar_cost,
    set_activation,
)
from anchornet_ext.models.sar.region_selection import RegionSelector
from anchornet_ext.models.tuning import tune

from .harness import Case, Contenders, Options, Row, Setting, measure_case

NAME = "sar"
SUMMARY = "SAR on its selected cells, against the same network masked and against its backbone"

SPARSE, MASKED, BACKBONE = "sparse", "masked", "backbone"
OWN, RANDOM = "own masks", "random masks"
USUAL = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnext50_32x4d",
    "mobilenet_v2",
    "resnet32",
    "resnet32x2",
)
QUICK = ("resnet20",)
#: CIFAR's ResNets: depth and width.
_CIFAR = {"resnet20": (20, 1), "resnet32": (32, 1), "resnet32x2": (32, 2)}
#: As published (Table VII): these keep the base branch's channels.
_ALPHA = {"resnext50_32x4d": 1, "mobilenet_v2": 1}


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Declares this suite's own options."""
    group.add_argument(
        "--activations",
        type=_share,
        nargs="+",
        metavar="T",
        help="shares of the cells that are refined, 0 to 1 (default: 0.5)",
    )
    group.add_argument(
        "--sar-groups", type=int, default=2, metavar="G", help="channel groups (default: 2)"
    )
    group.add_argument(
        "--masks",
        nargs="+",
        choices=("own", "random"),
        default=["own"],
        help="the network's decisions, or drawn cell by cell (default: own)",
    )


def check(options: Options) -> None:
    """
    Raises:
        ValueError: the number of groups fits none of the networks, or random masks are to be
            compiled.
    """
    arguments = options.arguments
    if "random" in _kinds_of_masks(options) and getattr(arguments, "compiled", False):
        raise ValueError("--compiled measures the network's own masks: leave out --masks random")
    for name in _names(options):
        with torch.device("meta"):
            _build(name, getattr(arguments, "sar_groups", 2))


def measure(options: Options) -> Iterator[Row]:
    """The rows of all networks, sizes, batches, activations and kinds of masks."""
    rates = getattr(options.arguments, "activations", None) or (0.5,)
    for name in _names(options):
        usual_size = 32 if name in _CIFAR else 224
        for dtype in options.dtypes or (torch.float32,):
            for size in options.sizes or (usual_size,):
                for batch in options.batches or ((2,) if options.quick else (1, 32)):
                    for kind in _kinds_of_masks(options):
                        for rate in rates:
                            case = Networks(name, size, batch, rate, dtype, options, kind)
                            yield from case.rows(options)


class Networks:
    """The three networks for one batch.

    Attributes:
        macs: contender -> multiply-adds of an image, of "sparse" the mean by the masks.
    """

    def __init__(
        self,
        name: str,
        size: int,
        batch: int,
        rate: float,
        dtype: torch.dtype,
        options: Options,
        masks: str = "own",
    ) -> None:
        self.compiled = bool(getattr(options.arguments, "compiled", False))
        self.groups = getattr(options.arguments, "sar_groups", 2)
        self.name, self.size, self.batch, self.rate = name, size, batch, rate
        self.dtype, self.device = dtype, options.device
        self.random = masks == "random"
        self.macs: dict[str, int] = {}

    def case(self) -> Case:
        """The networks taking turns; they are built when it is measured."""
        settings: dict[str, Setting] = {
            "network": self.name,
            "groups": self.groups,
            "activation": self.rate,
            "masks": RANDOM if self.random else OWN,
            "batch": self.batch,
            "size": self.size,
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        if self.compiled:
            settings["compiled"] = True
        return Case(
            suite=NAME,
            settings=settings,
            build=self.build,
            batch=self.batch,
            over=(MASKED, BACKBONE),
            sample=2e-2,
            rounds=9,
            mode=torch.no_grad,
        )

    def rows(self, options: Options) -> Iterator[Row]:
        """Measured, with the multiply-adds and what they promise of each other contender."""
        for row in measure_case(self.case(), options):
            own = self.macs.get(row.name)
            if own is None:
                yield row
                continue
            promised = {name: self.macs[name] / own for name in (MASKED, BACKBONE)}
            yield replace(row, facts={**row.facts, "macs": own, "promised": promised})

    def build(self) -> Contenders:
        """Tuned networks on one batch of noise."""
        classes = 10 if self.name in _CIFAR else 1000
        images = torch.randn(self.batch, 3, self.size, self.size)
        network = _build(self.name, self.groups, classes).eval()
        masks = self._masks(network, images)
        plain = _plain(self.name, classes)
        size = (self.size, self.size)
        cost = sar_cost(network, size)
        self.macs = {
            SPARSE: int(cost.of_masks(masks).sum()) // self.batch,
            MASKED: round(cost.at(1)),
            BACKBONE: count_macs(plain, (3, *size)),
        }
        images = images.to(self.device, self.dtype).contiguous(memory_format=torch.channels_last)
        options: dict[str, Any] = {"compile": self.compiled, "dtype": self.dtype}
        sparse = SparseSAR(network, **options).to(self.device)
        masked = tune(network, image_size=size, **options).to(self.device)
        backbone = tune(plain, image_size=size, **options).to(self.device)
        calls: dict[str, Callable[[], object]] = {
            SPARSE: partial(sparse, images),
            MASKED: partial(masked, images),
            BACKBONE: partial(backbone, images),
        }
        if self.random:
            given = [mask.to(self.device) for mask in masks]
            for name, runs in ((SPARSE, sparse), (MASKED, masked.network)):
                calls[name] = partial(_run_with, runs, images, given)
        return calls

    def _masks(self, network: SARNetwork, images: Tensor) -> list[Tensor]:
        """What both ways to run it will decide, or be told."""
        for module in network.modules():
            if isinstance(module, RegionSelector):  # at first all but indifferent
                nn.init.normal_(module.decide.weight)
        with torch.no_grad():
            if not self.random:
                set_activation(network, images, self.rate)
            own = network.run(images, decide)[1]
        return [torch.rand(m.shape) < self.rate for m in own] if self.random else own


def describe(row: Row) -> str:
    """How many multiply-adds, and how much of what they promise the clock shows."""
    macs = row.facts.get("macs")
    if macs is None:
        return ""
    words = f"{macs / 1e6:,.1f} M multiply-adds"
    if row.name != SPARSE or not row.ratios:
        return words
    promises = ", ".join(
        f"{promised:.2f} over {name} promised, {row.ratios[name] / promised:.2f} of that realised"
        for name, promised in row.facts["promised"].items()
        if name in row.ratios
    )
    return f"{words}: {promises}"


def _run_with(network: Any, images: Tensor, masks: Sequence[Tensor]) -> Tensor:
    """The logits by these masks, of one module after the other."""
    given = iter(masks)
    logits: Tensor = network.run(images, lambda logits: next(given))[0]
    return logits


def _build(name: str, groups: int, classes: int = 10) -> SARNetwork:
    return build_sar(name, classes, groups=groups, alpha=_ALPHA.get(name, 2))


def _plain(name: str, classes: int) -> nn.Module:
    if name in _CIFAR:
        depth, width = _CIFAR[name]
        return CifarResNet(depth, classes, width).eval()
    return build_backbone(name, classes).eval()


def _kinds_of_masks(options: Options) -> tuple[str, ...]:
    return tuple(dict.fromkeys(getattr(options.arguments, "masks", None) or ("own",)))


def _names(options: Options) -> tuple[str, ...]:
    """Backbones that SAR networks are made of; those of others' suites are left out."""
    if options.backbones is None:
        return QUICK if options.quick else USUAL
    return tuple(name for name in options.backbones if name in ARCHITECTURES)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: it must be within [0, 1]")
    return value

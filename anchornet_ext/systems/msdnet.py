"""MSDNet: a multi-scale dense network with classifiers along the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from anchornet_ext._options import option
from anchornet_ext.models.msdnet import MSDNET_PRESETS, MSDNet
from anchornet_ext.models.network_config import SPACINGS, STEMS

from .common.exit_networks import ExitNetworkSystem
from .common.preset_options import PresetOptions


@dataclass(frozen=True)
class MSDNetOptions(PresetOptions):
    """A published configuration, and what is different from it; see `MSDNetConfig`."""

    presets: ClassVar[Mapping[str, Any]] = MSDNET_PRESETS

    preset: str = option("imagenet-base4", "a published configuration", tuple(MSDNET_PRESETS))
    blocks: int | None = option(None, "exits, one after each block", convert=int)
    base: int | None = option(None, "layers of the first block", convert=int)
    step: int | None = option(None, "layers of each further block", convert=int)
    spacing: str | None = option(None, "whether blocks become longer", SPACINGS)
    channels: int | None = option(None, "of the stem's finest scale", convert=int)
    growth: int | None = option(None, "channels that a layer adds, even", convert=int)
    factors: tuple[int, ...] | None = option(
        None, "of the channels of each scale, the finest first", count=-1, convert=int
    )
    bottlenecks: tuple[int, ...] | None = option(
        None, "width of each scale's bottleneck", count=-1, convert=int
    )
    reduction: float | None = option(
        None, "share of the channels that a transition keeps", convert=float
    )
    stem: str | None = option(None, "large for photos, small for 32 x 32 pixels", STEMS)


class MSDNetSystem(ExitNetworkSystem):
    """Huang et al., ICLR 2018."""

    name = "msdnet"
    title = "MSDNet"
    summary = "a multi-scale dense network with a classifier after each block"
    Options = MSDNetOptions
    tiny = (
        *("--preset", "cifar-batch", "--blocks", "3", "--channels", "4", "--growth", "2"),
        *("--crop-size", "32", "--resize-size", "32"),
    )

    def build(self, options: MSDNetOptions, num_classes: int) -> nn.Module:
        """See `NetworkSystem.build`."""
        return MSDNet(num_classes, options.config(), options.schedule)


SYSTEM = MSDNetSystem()

"""RANet: sub-networks of rising resolution, each with classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import nn

from anchornet_ext._options import option
from anchornet_ext.models.network_config import SPACINGS, STEMS
from anchornet_ext.models.ranet import RANET_PRESETS, RANet

from .common.exit_networks import ExitNetworkSystem
from .common.preset_options import PresetOptions


@dataclass(frozen=True)
class RANetOptions(PresetOptions):
    """A published configuration, and what is different from it; see `RANetConfig`."""

    presets: ClassVar[Mapping[str, Any]] = RANET_PRESETS

    preset: str = option("imagenet", "a published configuration", tuple(RANET_PRESETS))
    scales: tuple[int, ...] | None = option(
        None, "each sub-network's resolution, 1 the lowest", count=-1, convert=int
    )
    factors: tuple[int, ...] | None = option(
        None, "of the channels of each sub-network", count=-1, convert=int
    )
    bottlenecks: tuple[int, ...] | None = option(
        None, "width of each sub-network's bottleneck", count=-1, convert=int
    )
    blocks: int | None = option(None, "of the first sub-network", convert=int)
    more_blocks: int | None = option(
        None, "blocks, with an exit each, that a sub-network has more", convert=int
    )
    step: int | None = option(None, "layers of each block", convert=int)
    spacing: str | None = option(None, "whether blocks become longer", SPACINGS)
    channels: int | None = option(None, "of the base features", convert=int)
    growth: int | None = option(None, "channels that a layer adds", convert=int)
    compress: float | None = option(
        None, "share of what is added that comes from the sub-network before", convert=float
    )
    reduction: float | None = option(
        None, "share of the channels that a transition keeps", convert=float
    )
    stem: str | None = option(None, "large for photos, small for 32 x 32 pixels", STEMS)


class RANetSystem(ExitNetworkSystem):
    """Yang et al., CVPR 2020."""

    name = "ranet"
    title = "RANet"
    summary = "sub-networks of rising resolution, each with classifiers"
    Options = RANetOptions
    tiny = (
        *("--preset", "cifar-growing", "--scales", "1", "2", "--factors", "2", "1"),
        *("--bottlenecks", "2", "1", "--channels", "4", "--growth", "4"),
        *("--crop-size", "32", "--resize-size", "32"),
    )
    stages = tuple(
        # Plain momentum, where MSDNet's authors take Nesterov's.
        replace(stage, default=replace(stage.default, nesterov=False))
        for stage in ExitNetworkSystem.stages
    )

    def build(self, options: RANetOptions, num_classes: int) -> nn.Module:
        """See `NetworkSystem.build`."""
        return RANet(num_classes, options.config(), options.schedule)


SYSTEM = RANetSystem()

"""MSDNet: a multi-scale dense network with classifiers along the way."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from torch import nn

from anchornet_ext._options import option
from anchornet_ext.models.exits import SCHEDULES
from anchornet_ext.models.msdnet import MSDNET_PRESETS, SPACINGS, STEMS, MSDNet, MSDNetConfig
from anchornet_ext.models.network_config import require_choice

from .common.exit_networks import ExitNetworkSystem


@dataclass(frozen=True)
class MSDNetOptions:
    """A published configuration, and what is different from it; see `MSDNetConfig`."""

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
    schedule: str = option(
        "needed", "what is computed before an exit: all blocks, or what it needs", SCHEDULES
    )

    def __post_init__(self) -> None:
        require_choice(self.preset, "preset", tuple(MSDNET_PRESETS))
        require_choice(self.schedule, "schedule", SCHEDULES)
        self.config()  # checks the rest

    def config(self) -> MSDNetConfig:
        """The shape of the network."""
        changed = {
            field.name: getattr(self, field.name)
            for field in fields(MSDNetConfig)
            if getattr(self, field.name) is not None
        }
        return replace(MSDNET_PRESETS[self.preset], **changed)


class MSDNetSystem(ExitNetworkSystem):
    """Huang et al., ICLR 2018."""

    name = "msdnet"
    title = "MSDNet"
    summary = "a multi-scale dense network with a classifier after each block"
    Options = MSDNetOptions
    presets = MSDNET_PRESETS
    tiny = (
        *("--preset", "cifar-batch", "--blocks", "3", "--channels", "4", "--growth", "2"),
        *("--crop-size", "32", "--resize-size", "32"),
    )

    def build(self, options: MSDNetOptions, num_classes: int) -> nn.Module:
        """See `NetworkSystem.build`."""
        return MSDNet(num_classes, options.config(), options.schedule)


SYSTEM = MSDNetSystem()

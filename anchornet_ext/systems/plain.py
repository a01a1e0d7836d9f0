"""One network, used plainly: what every dynamic network has to be compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from anchornet_ext.evaluation.plain_network import PlainNetwork
from anchornet_ext.evaluation.report_data import PLAIN_EXPLANATION
from anchornet_ext.evaluation.systems import ExitSystem
from anchornet_ext.models import build_backbone
from anchornet_ext.models.single_exit import SingleExit
from anchornet_ext.training.config import Stage, StageConfig
from anchornet_ext.training.distributed import World
from anchornet_ext.training.plan import Plan, Supply
from anchornet_ext.training.task import Task

from .common.backbone_start import BackboneOptions, initial_backbone, require_start
from .common.network_system import NetworkSystem
from .common.recipe import Recipe
from .common.storage import Saved


class PlainSystem(NetworkSystem):
    """A classification network with one exit, at its end."""

    name = "plain"
    title = "Plain"
    summary = "one network that sees the whole image, to compare the others with"
    explanation = PLAIN_EXPLANATION
    Options = BackboneOptions
    decisive = "backbone"
    tiny = ("--backbone", "cifar/resnet8", "--crop-size", "32", "--resize-size", "32")
    stages = (
        Stage(
            "network",
            StageConfig(epochs=100, lr=0.1, schedule="cosine", nesterov=True),
            {"size", "dropout"},
            "the network",
        ),
    )
    parts: ClassVar[Mapping[str, str]] = {"network": "network"}

    def recipe(self, choice: str | None) -> Recipe | None:
        """He et al., section 4.2, for the ResNets made for CIFAR: 64,000 steps are 164 epochs."""
        if choice is None or not choice.startswith("cifar/"):
            return None
        published = StageConfig(
            epochs=164, batch=128, lr=0.1, schedule="step", milestones=(50.0, 75.0), pad=4
        )
        return Recipe(
            "He et al. on CIFAR, as --backbone is for its images",
            {"network": published},
            BackboneOptions(backbone=choice),
        )

    def build(self, options: BackboneOptions, num_classes: int) -> nn.Module:
        """See `NetworkSystem.build`."""
        network = build_backbone(options.backbone, num_classes)
        return SingleExit(network, num_classes, options.backbone)

    def exits(
        self, network: nn.Module, saved: Saved, folder: Path, device: torch.device
    ) -> ExitSystem:
        """See `NetworkSystem.exits`."""
        described = self.described(network, saved, folder)
        return PlainNetwork(network.get_submodule("network"), device=device, **described)

    def require(self, plan: Plan, stages: Sequence[str], world: World) -> None:
        """The network takes the crop, and the weights to start from fit."""
        super().require(plan, stages, world)
        options: BackboneOptions = plan.options
        require_start(
            options.backbone,
            plan.num_classes,
            pretrained=options.pretrained,
            weights=options.backbone_weights,
        )

    def task(self, stage: str, plan: Plan, supply: Supply) -> Task:
        """See `System.task`."""
        options: BackboneOptions = plan.options
        network = initial_backbone(
            options.backbone,
            plan.num_classes,
            pretrained=options.pretrained,
            weights=options.backbone_weights,
        )
        config = plan.configs[stage]
        data = supply.batches(plan, config)
        return Task(stage, network, config, data, plan.preprocessing, plan.num_classes)


SYSTEM = PlainSystem()

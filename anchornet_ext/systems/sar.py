"""SAR: a coarse look everywhere, a fine one only where a learnt mask asks for it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from anchornet_ext import _extension
from anchornet_ext._images import require_normalised_images
from anchornet_ext._options import need, option
from anchornet_ext.data.transforms import Preprocessing
from anchornet_ext.evaluation.systems import ExitSystem
from anchornet_ext.inference.exit_rules import chosen_policy
from anchornet_ext.inference.lazy_exits import ExitClassification
from anchornet_ext.models.sar import (
    ARCHITECTURES,
    SARNetwork,
    SparseSAR,
    build_sar,
    decide,
    sar_cost,
)
from anchornet_ext.models.tuning import tune
from anchornet_ext.policy.exit_policy import ExitPolicy
from anchornet_ext.training.checkpoint import load_weights
from anchornet_ext.training.config import Stage, StageConfig
from anchornet_ext.training.plan import Plan, Supply
from anchornet_ext.training.sar import SARLearner, SARTask
from anchornet_ext.training.task import Task

from .common.network_system import NetworkSystem
from .common.recipe import Recipe
from .common.storage import Saved
from .common.system import display_name

#: The backbones that are for images of 32 x 32.
CIFAR_BACKBONES = ("resnet20", "resnet32", "resnet32x2")


@dataclass(frozen=True)
class SAROptions:
    """The network, by the paper's names, and how much it may refine."""

    backbone: str = option("resnet50", "what is made a SAR network", tuple(ARCHITECTURES))
    groups: int = option(2, "channel groups with masks of their own, G")
    stride: int = option(2, "by which the base branch is smaller, s: 2, 4 or 8")
    alpha: int = option(2, "by which the base branch has fewer channels")
    beta: int = option(1, "by which the refinement branch has more channels")
    cells: int | None = option(
        None, "K; a map is cut into K x K cells: 7 for photos, 4 for 32 x 32 pixels", convert=int
    )
    target: float = option(0.5, "share of the cells to be refined in the end, t")
    penalty: float = option(0.5, "weight of the target in the loss, lambda; 1 on CIFAR")

    def __post_init__(self) -> None:
        for name in ("groups", "stride", "alpha", "beta"):
            need(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        need(self.cells is None or self.cells >= 1, "cells", "at least 1", self.cells)
        need(0 <= self.target <= 1, "target", "within [0, 1]", self.target)
        need(0 <= self.penalty < math.inf, "penalty", "at least 0 and finite", self.penalty)


class SARExits:
    """A SAR network ready to be evaluated (see `ExitSystem`): one exit, at each image's own cost.

    What the masks leave out is not computed, so an image's cost is that of what runs. Without the
    native library whole maps are masked, with the same results; `about["refinement"]` says which.

    Args:
        network: with trained weights; it is copied to the device and tuned.
        saved: its configuration.
        name, device, about: see `ExitSystem`.
        target: the activation that it was trained for.
    """

    num_exits = 1
    temperature_scales = True
    costs_vary = True
    explanation = (
        "The network looks at the whole image coarsely, and decides for each part of it, layer by "
        "layer, whether to look again finely. So images cost differently, by what they show."
    )

    def __init__(
        self,
        network: SARNetwork,
        saved: Saved,
        name: str,
        device: torch.device,
        target: float,
        about: Mapping[str, Any],
    ) -> None:
        self.name = name
        self.checksum = saved.checksum
        self.class_names: Sequence[str] = saved.class_names
        self.num_classes = len(saved.class_names)
        self.preprocessing: Preprocessing = saved.preprocessing
        self.device = device
        self.policy = saved.policy
        side = self.preprocessing.crop_size
        self._cost = sar_cost(network, (side, side))
        self._target = target
        self._network: Any
        if _extension.available():
            self._network, refinement = (
                SparseSAR(network),
                "selected cells, or masked maps where faster",
            )
        else:
            self._network = tune(network, image_size=(side, side)).network
            refinement = "whole maps, masked"
        self._network.to(device)
        self.about: Mapping[str, Any] = {"image_size": side, "refinement": refinement, **about}

    def macs_per_exit(self) -> tuple[int, ...]:
        """(1,) at the activation that it was trained for."""
        return (round(self._cost.at(self._target)),)

    def logits_and_costs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(1, B, n) logits, and (B, 1) what each image cost by its masks."""
        with torch.no_grad():
            images = images.contiguous(memory_format=torch.channels_last)
            logits, masks = self._network.run(images, decide)
            return logits.float()[None], self._cost.of_masks(masks)[:, None]

    def anytime_logits(self, images: Tensor) -> Tensor:
        """(1, B, n)."""
        return self.logits_and_costs(images)[0]

    def classify(
        self,
        images: Tensor,
        thresholds: Sequence[float] | None = None,
        exit_at: int | None = None,
        *,
        policy: ExitPolicy | None = None,
    ) -> ExitClassification:
        """All images go to the one exit there is, each at its own cost."""
        require_normalised_images(images)
        policy = chosen_policy(1, thresholds, exit_at, policy, self.policy)
        logits, costs = self.logits_and_costs(images)
        probabilities = (logits[0] / policy.temperature(1)).softmax(dim=1)
        confidence, label = probabilities.max(dim=1)
        ones = torch.ones_like(label)
        return ExitClassification(
            label=label,
            probabilities=probabilities,
            exit_step=ones,
            answer_step=ones,
            confidence=confidence[:, None],
            step_label=label[:, None],
            macs=costs[:, 0],
            full_macs=round(self._cost.at(1.0)),
        )


class SARSystem(NetworkSystem):
    """Han et al.; one exit, whose cost depends on the image."""

    name = "sar"
    title = "SAR"
    summary = "a coarse look everywhere, a fine one where a learnt mask asks for it"
    Options = SAROptions
    decisive = "backbone"
    tiny = (
        *("--backbone", "resnet20", "--network-warmup-epochs", "0"),
        *("--crop-size", "32", "--resize-size", "32"),
    )
    stages = (
        Stage(
            "network",
            StageConfig(
                epochs=200, lr=0.1, schedule="cosine", warmup_epochs=5, label_smoothing=0.1
            ),
            {"size", "dropout"},
            "the whole network with its masks",
        ),
    )
    parts: ClassVar[Mapping[str, str]] = {"network": ""}

    def recipe(self, choice: str | None) -> Recipe | None:
        """Appendix B: CIFAR (its Figure 4 alone is of 500 epochs), for the ResNets made for it."""
        if choice not in CIFAR_BACKBONES:
            return None
        published = StageConfig(epochs=300, batch=128, lr=0.2, schedule="cosine", pad=4)
        return Recipe(
            f"the paper's training on CIFAR, as --backbone is {choice}",
            {"network": published},
            SAROptions(backbone=choice, penalty=1.0),
        )

    def build(self, options: SAROptions, num_classes: int) -> nn.Module:
        """See `NetworkSystem.build`."""
        return build_sar(
            options.backbone,
            num_classes,
            groups=options.groups,
            stride=options.stride,
            alpha=options.alpha,
            beta=options.beta,
            cells=options.cells,
        )

    def macs_per_exit(self, network: Any, plan: Plan) -> tuple[int, ...]:
        """(1,) at the target."""
        side = plan.preprocessing.crop_size
        return (round(sar_cost(network, (side, side)).at(plan.options.target)),)

    def task(self, stage: str, plan: Plan, supply: Supply) -> Task:
        """See `System.task`."""
        options: SAROptions = plan.options
        network: Any = self.build(options, plan.num_classes)
        config = plan.configs[stage]
        return SARTask(
            stage,
            SARLearner(network),
            config,
            supply.batches(plan, config),
            plan.preprocessing,
            plan.num_classes,
            options.target,
            options.penalty,
        )

    def trained(self, plan: Plan) -> nn.Module:
        """The network inside of the best learner."""
        network: Any = self.build(plan.options, plan.num_classes)
        load_weights(SARLearner(network), plan.best("network"))  # fills the network in it
        trained: nn.Module = network
        return trained

    def exits(self, network: Any, saved: Saved, folder: Path, device: torch.device) -> ExitSystem:
        """See `NetworkSystem.exits`."""
        return SARExits(
            network,
            saved,
            display_name(self.title, folder),
            device,
            float(saved.options["target"]),
            {"model": str(folder), "kind": self.name, "options": dict(saved.options)},
        )


SYSTEM = SARSystem()

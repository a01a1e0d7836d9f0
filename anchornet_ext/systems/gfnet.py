"""GFNet: a glance at the small picture, then patches that a policy trained by PPO chooses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from anchornet_ext import _extension
from anchornet_ext._options import need, option
from anchornet_ext.evaluation.systems import ExitSystem
from anchornet_ext.models import build_backbone, require_input_size
from anchornet_ext.models.gfnet import GFNet
from anchornet_ext.models.norm_folding import fold_batch_norms
from anchornet_ext.training.checkpoint import load_weights
from anchornet_ext.training.config import Stage, StageConfig
from anchornet_ext.training.distributed import World
from anchornet_ext.training.gfnet import (
    PolicyLearner,
    PolicyTask,
    SequenceLearner,
    SequenceTask,
)
from anchornet_ext.training.plan import Plan, Supply
from anchornet_ext.training.ppo import PPOConfig
from anchornet_ext.training.stages import GlanceTask
from anchornet_ext.training.task import Task

from .common.backbone_start import BackboneOptions, initial_backbone, require_start
from .common.network_system import NetworkSystem
from .common.storage import Saved

_CLASSIFIERS = {"family": None, "gru": True, "linear": False}
#: Appendix A.3, by the backbone's family: learning rate of the encoders, lambda, and whether f_G is
#: trained after its own fine-tuning. ResNets, DenseNets and all others have `_USUAL_RECIPE`.
_USUAL_RECIPE = (0.01, 1.0, True)
_RECIPES = {
    "regnet": (0.02, 1.0, True),
    "mobilenet": (0.005, 5.0, False),
    "efficientnet": (0.005, 5.0, False),
}


def _family(backbone: str) -> str | None:
    """The key of `_RECIPES` that a backbone of torchvision or timm belongs to, by its name.

    timm puts where the weights are from before the family: "timm/tf_efficientnet_b2".
    """
    return next((family for family in _RECIPES if family in backbone.lower()), None)


@dataclass(frozen=True)
class GFNetOptions(BackboneOptions):
    """The network, and what its stages share."""

    backbone: str = option(
        "",
        "of both encoders: a ResNet, DenseNet, RegNet, MobileNetV3 or EfficientNet of torchvision, "
        "or timm/NAME",
        metavar="NAME",
        required=True,
    )
    num_exits: int = option(5, "inputs of a sequence, the glance among them", metavar="T")
    patch_size: int = option(96, "side of the glance and of the patches", metavar="PIXELS")
    classifier: str = option(
        "family",
        "a GRU, or one linear layer per input; family: what the paper takes for the backbone",
        tuple(_CLASSIFIERS),
    )
    classifier_hidden: int = option(1024, "units of the classifier's GRU", metavar="H")
    policy_hidden: int | None = option(
        None, "units of the proposal network's GRU; the paper's for the backbone", convert=int
    )
    encoder_lr: float | None = option(
        None, "learning rate of the encoders; the paper's for the backbone", convert=float
    )
    regularisation: float | None = option(
        None, "lambda of Eq. (3); the paper's for the backbone", convert=float
    )
    policy_std: float = option(0.1, "spread of the actions while the policy is trained")
    discount: float = option(0.7, "of later rewards while the policy is trained")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (
            ("num_exits", 2),
            ("patch_size", 1),
            ("classifier_hidden", 1),
            ("policy_hidden", 1),
        ):
            value = getattr(self, name)
            need(value is None or value >= least, name, f"at least {least}", value)
        need(
            self.encoder_lr is None or 0 < self.encoder_lr < math.inf,
            "encoder_lr",
            "positive and finite",
            self.encoder_lr,
        )
        need(
            self.regularisation is None or 0 <= self.regularisation < math.inf,
            "regularisation",
            "at least 0 and finite",
            self.regularisation,
        )
        need(0 < self.policy_std < math.inf, "policy_std", "positive and finite", self.policy_std)
        need(0 <= self.discount <= 1, "discount", "within [0, 1]", self.discount)
        need(self.classifier in _CLASSIFIERS, "classifier", "a known one", self.classifier)

    def recipe(self) -> tuple[float, float, bool]:
        """(learning rate of the encoders, lambda, whether f_G learns in stages I and III)."""
        family = _family(self.backbone)
        encoder_lr, regularisation, glance_learns = (
            _USUAL_RECIPE if family is None else _RECIPES[family]
        )
        if self.encoder_lr is not None:
            encoder_lr = self.encoder_lr
        if self.regularisation is not None:
            regularisation = self.regularisation
        return encoder_lr, regularisation, glance_learns


_SEQUENCE = StageConfig(epochs=60, lr=0.1, schedule="cosine", nesterov=True)
#: One label for each photo: what the reward is about.
_NO_MIXING = {"size", "dropout", "mixup", "cutmix", "label_smoothing"}


class GFNetSystem(NetworkSystem):
    """Wang et al., NeurIPS 2020."""

    name = "gfnet"
    title = "GFNet"
    summary = "a glance at the small picture, then patches that a trained policy chooses"
    Options = GFNetOptions
    tiny = (
        *("--backbone", "timm/test_resnet", "--backbone-size", "32", "--num-exits", "3"),
        *("--patch-size", "32", "--classifier", "gru"),
        *("--classifier-hidden", "16", "--policy-hidden", "16"),
        *("--crop-size", "48", "--resize-size", "48"),
    )
    stages = (
        Stage(
            "backbone",
            StageConfig(epochs=100, lr=0.1, schedule="cosine", nesterov=True),
            {"dropout"},
            "what both encoders start from; left out where it has weights",
        ),
        Stage(
            "glance",
            StageConfig(epochs=30, lr=0.01, schedule="cosine", nesterov=True),
            {"size", "dropout"},
            "the backbone on the resized photo, from which f_G starts",
        ),
        Stage(
            "sequence",
            _SEQUENCE,
            {"size", "dropout"},
            "encoders and classifier on random patches (I)",
        ),
        Stage(
            "policy",
            StageConfig(
                epochs=15, optimizer="adamw", lr=3e-4, schedule="constant", weight_decay=0.0
            ),
            _NO_MIXING,
            "the proposal network, by PPO (II)",
        ),
        Stage(
            "refine",
            StageConfig(epochs=60, lr=0.01, schedule="cosine", nesterov=True),
            {"size", "dropout"},
            "encoders and classifier on the policy's patches (III); not for EfficientNets",
        ),
    )
    #: Every stage's weights hold the whole network, see `trained`.
    parts: ClassVar[Mapping[str, str]] = {}

    def stages_to_run(self, options: GFNetOptions) -> tuple[str, ...]:
        """Without stage backbone where that has weights, and without III for EfficientNets."""
        left_out = set()
        if options.has_weights:
            left_out.add("backbone")
        if _family(options.backbone) == "efficientnet":
            left_out.add("refine")
        return tuple(stage.name for stage in self.stages if stage.name not in left_out)

    def build(self, options: GFNetOptions, num_classes: int) -> GFNet:
        """See `NetworkSystem.build`."""
        return GFNet(
            options.backbone,
            num_classes,
            num_exits=options.num_exits,
            patch_size=options.patch_size,
            recurrent=_CLASSIFIERS[options.classifier],
            classifier_hidden=options.classifier_hidden,
            policy_hidden=options.policy_hidden,
        )

    def require(self, plan: Plan, stages: Sequence[str], world: World) -> None:
        """See `System.require`."""
        options: GFNetOptions = plan.options
        crop = plan.preprocessing.crop_size
        if crop < options.patch_size:
            raise ValueError(
                f"--crop-size {crop} is smaller than the patches of {options.patch_size} pixels"
            )
        self.build(options, plan.num_classes)  # takes patches of that size
        if "backbone" in stages:
            backbone = build_backbone(options.backbone, plan.num_classes)
            require_input_size(backbone, plan.configs["backbone"].size)
        order = self.stages_to_run(options)
        for stage in stages:
            for earlier in order[: order.index(stage)] if stage in order else ():
                if earlier not in stages and not plan.best(earlier).is_file():
                    raise ValueError(
                        f"stage {stage} needs the result of stage {earlier}, and "
                        f"{str(plan.run)!r} has none: run it first"
                    )
        if {"sequence", "policy", "refine"} & set(stages):
            _extension.require_device(world.device)
        require_start(
            options.backbone,
            plan.num_classes,
            pretrained=options.pretrained,
            weights=options.backbone_weights,
        )

    def task(self, stage: str, plan: Plan, supply: Supply) -> Task:
        """See `System.task`."""
        options: GFNetOptions = plan.options
        config, preprocessing, classes = plan.configs[stage], plan.preprocessing, plan.num_classes
        if stage == "backbone":
            preprocessing = preprocessing.with_crop_size(config.size)
            network = build_backbone(options.backbone, classes)
            data = supply.batches(plan, config, preprocessing)
            return Task(stage, network, config, data, preprocessing, classes)
        data = supply.batches(plan, config)
        if stage == "glance":
            small = replace(config, size=options.patch_size)
            network = self._initial_backbone(plan)
            return GlanceTask(stage, network, small, data, preprocessing, classes)
        gfnet = self.build(options, classes)
        if stage == "policy":
            load_weights(SequenceLearner(gfnet, "random"), plan.best("sequence"))
            ppo = PPOConfig(gamma=options.discount, std=options.policy_std)
            learner = PolicyLearner(gfnet, ppo)
            return PolicyTask(stage, learner, config, data, preprocessing, classes)
        encoder_lr, regularisation, glance_learns = options.recipe()
        if stage == "sequence":
            gfnet.focus.network.load_state_dict(self._initial_backbone(plan).state_dict())
            load_weights(gfnet.glance.network, plan.best("glance"))
        else:
            load_weights(PolicyLearner(gfnet, PPOConfig()), plan.best("policy"))
        sequences = SequenceLearner(
            gfnet,
            "random" if stage == "sequence" else "policy",
            freeze_glance=not glance_learns,
        )
        return SequenceTask(
            stage,
            sequences,
            config,
            data,
            preprocessing,
            classes,
            encoder_lr=encoder_lr,
            regularisation=regularisation,
        )

    def _initial_backbone(self, plan: Plan) -> nn.Module:
        """The trained backbone that both encoders start from."""
        options: GFNetOptions = plan.options
        return initial_backbone(
            options.backbone,
            plan.num_classes,
            pretrained=options.pretrained,
            weights=options.backbone_weights or plan.best("backbone"),
        )

    def trained(self, plan: Plan) -> nn.Module:
        """The network of the last stage: every stage's weights hold the whole network."""
        network = self.build(plan.options, plan.num_classes)
        last = self.stages_to_run(plan.options)[-1]
        learner = PolicyLearner(network, PPOConfig())
        load_weights(learner, plan.best(last))
        return network.requires_grad_(True)

    def finish(self, plan: Plan) -> Sequence[str]:
        """Writes the network as soon as the last stage has been trained."""
        last = self.stages_to_run(plan.options)[-1]
        if not plan.best(last).is_file():
            return [last]
        return super().finish(plan)

    def exits(
        self, network: nn.Module, saved: Saved, folder: Path, device: torch.device
    ) -> ExitSystem:
        """Folds the encoders, which run more than once, each by itself."""
        assert isinstance(network, GFNet)
        side = (network.patch_size, network.patch_size)
        for encoder in (network.glance, network.focus):
            fold_batch_norms(encoder, side)
        return super().exits(network, saved, folder, device)


SYSTEM = GFNetSystem()

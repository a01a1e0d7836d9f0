"""AnchorNet: a glance at the small picture, then patches that a small network localises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from anchornet_ext import _extension
from anchornet_ext._options import need, option
from anchornet_ext.evaluation.systems import ExitSystem, TwoStageSystem
from anchornet_ext.models import AnchorNet, build_backbone, require_input_size
from anchornet_ext.training.checkpoint import load_weights
from anchornet_ext.training.config import Stage, StageConfig
from anchornet_ext.training.distributed import World
from anchornet_ext.training.plan import Plan, Supply
from anchornet_ext.training.stages import FocusTask, GlanceTask
from anchornet_ext.training.task import Task

from .common.backbone_start import BackboneOptions, initial_backbone, require_start
from .common.system import MODEL, System

#: Localised by AnchorNet (section 3.5), or anywhere: a fair opponent for the former.
FOCUS_PATCHES = ("localised", "random")


@dataclass(frozen=True)
class AnchorNetOptions(BackboneOptions):
    """The settings of the two-stage classifier."""

    num_patches: int = option(4, "patches of each photo", metavar="K")
    iou_threshold: float = option(0.3, "overlap of patches")
    focus_patches: str = option(
        "localised",
        "what the focus network is trained on; random is for comparison",
        FOCUS_PATCHES,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        need(self.num_patches >= 1, "num_patches", "at least 1", self.num_patches)
        need(0 <= self.iou_threshold <= 1, "iou_threshold", "within [0, 1]", self.iou_threshold)


#: The paper's recipe (section 4.1). It starts from published backbones and says nothing of their
#: training; the defaults of "backbone" are torchvision's plain recipe with a cosine.
STAGES = (
    Stage(
        "backbone",
        StageConfig(epochs=100, lr=0.1, schedule="cosine", nesterov=True),
        {"dropout"},
        "what glance and focus start from; left out where it has weights",
    ),
    Stage(
        "anchor",
        StageConfig(epochs=100, lr=0.1, schedule="step", nesterov=True),
        {"size"},
        "AnchorNet (Stage I)",
    ),
    Stage(
        "glance",
        StageConfig(epochs=30, size=95, lr=0.01, schedule="cosine"),
        {"dropout"},
        "the network of the resized photo (Stage II)",
    ),
    Stage(
        "focus",
        StageConfig(epochs=30, lr=0.01, schedule="cosine"),
        {"dropout", "size"},
        "the network of the patches (Stage II)",
    ),
)


class AnchorNetSystem(System):
    """The paper's system. Its four stages give three networks, see `TwoStageClassifier`."""

    name = "anchornet"
    title = "AnchorNet"
    summary = "a glance at the small picture, then patches where AnchorNet points"
    Options = AnchorNetOptions
    tiny = (
        *("--backbone", "cifar/resnet8", "--num-patches", "2", "--iou-threshold", "1"),
        *("--crop-size", "104", "--resize-size", "104", "--backbone-size", "32"),
        *("--glance-size", "32"),
    )
    stages = STAGES

    def stages_to_run(self, options: AnchorNetOptions) -> tuple[str, ...]:
        """Without stage backbone where that has weights already."""
        return tuple(s.name for s in STAGES if s.name != "backbone" or not options.has_weights)

    def identity(self, options: AnchorNetOptions) -> Mapping[str, Any]:
        """The backbone: the rest may change from stage to stage."""
        return {"backbone": options.backbone}

    def require(self, plan: Plan, stages: Sequence[str], world: World) -> None:
        """See `System.require`."""
        options: AnchorNetOptions = plan.options
        patch_size, crop = AnchorNet.patch_size, plan.preprocessing.crop_size
        if {"backbone", "glance", "focus"} & set(stages):
            model = build_backbone(options.backbone, plan.num_classes)
            sizes = {
                "backbone": plan.configs["backbone"].size,
                "glance": plan.configs["glance"].size,
                "focus": patch_size,
            }
            for stage, size in sizes.items():
                if stage in stages:
                    require_input_size(model, size)
        has_start = (
            "backbone" not in self.stages_to_run(options)
            or "backbone" in stages
            or plan.best("backbone").is_file()
        )
        for stage in ("glance", "focus"):
            if stage in stages and not has_start:
                raise ValueError(
                    f"stage {stage} starts from a trained backbone, and {str(plan.run)!r} has "
                    "none: run stage backbone first, or give --pretrained or --backbone-weights"
                )
        if {"anchor", "focus"} & set(stages) and crop < patch_size:
            raise ValueError(
                f"--crop-size {crop} is smaller than AnchorNet's patches of {patch_size} pixels"
            )
        if "focus" in stages:
            self._require_focus(plan, stages, world)
        if {"glance", "focus"} & set(stages):
            require_start(
                options.backbone,
                plan.num_classes,
                pretrained=options.pretrained,
                weights=options.backbone_weights,
            )

    def _require_focus(self, plan: Plan, stages: Sequence[str], world: World) -> None:
        options: AnchorNetOptions = plan.options
        crop = plan.preprocessing.crop_size
        side = (crop - AnchorNet.patch_size) // AnchorNet.stride + 1
        if options.num_patches > side * side:
            raise ValueError(
                f"--num-patches {options.num_patches} is too many: AnchorNet's map of a crop of "
                f"{crop} pixels has {side} x {side} places, at most {side * side} patches"
            )
        needs_anchor = options.focus_patches == "localised"
        if needs_anchor and "anchor" not in stages and not plan.best("anchor").is_file():
            raise ValueError(
                f"stage focus needs a trained AnchorNet, and {str(plan.run)!r} has none: "
                "run stage anchor first"
            )
        _extension.require_device(world.device)
        batch = plan.configs["focus"].batch
        if batch % (options.num_patches * world.size):
            raise ValueError(
                f"--focus-batch {batch} is not a multiple of {options.num_patches} patches x "
                f"{world.size} process(es)"
            )

    def task(self, stage: str, plan: Plan, supply: Supply) -> Task:
        """See `System.task`."""
        options: AnchorNetOptions = plan.options
        config, preprocessing = plan.configs[stage], plan.preprocessing
        images_per_step = config.batch
        kind: type[Task] = Task
        model: nn.Module
        if stage == "backbone":
            preprocessing = preprocessing.with_crop_size(config.size)
            model = build_backbone(options.backbone, plan.num_classes)
        elif stage == "anchor":
            model = AnchorNet(plan.num_classes, dropout=config.dropout)
        else:
            model = self._initial_backbone(plan)
            kind = GlanceTask if stage == "glance" else FocusTask
            if stage == "focus":
                images_per_step = config.batch // options.num_patches
        data = supply.batches(plan, config, preprocessing, images_per_step)
        task = kind(stage, model, config, data, preprocessing, plan.num_classes)
        if isinstance(task, FocusTask):
            task.anchor = None
            if options.focus_patches == "localised":
                anchor = AnchorNet(plan.num_classes)
                load_weights(anchor, plan.best("anchor"))
                # Folded: the same map for less work, and nothing in it is trained.
                folded = anchor.eval().fold().to(supply.world.device)
                task.anchor = folded.requires_grad_(False)
            task.num_patches = options.num_patches
            task.iou_threshold = options.iou_threshold
        return task

    def _initial_backbone(self, plan: Plan) -> nn.Module:
        """The trained backbone that glance and focus start from."""
        options: AnchorNetOptions = plan.options
        return initial_backbone(
            options.backbone,
            plan.num_classes,
            pretrained=options.pretrained,
            weights=options.backbone_weights or plan.best("backbone"),
        )

    def finish(self, plan: Plan) -> Sequence[str]:
        """Writes a `TwoStageClassifier`."""
        missing = [s for s in ("anchor", "glance", "focus") if not plan.best(s).is_file()]
        if missing:
            return missing
        from anchornet_ext.inference import TwoStageClassifier

        options: AnchorNetOptions = plan.options
        anchor = AnchorNet(plan.num_classes)
        glance = build_backbone(options.backbone, plan.num_classes)
        focus = build_backbone(options.backbone, plan.num_classes)
        for stage, module in (("anchor", anchor), ("glance", glance), ("focus", focus)):
            load_weights(module, plan.best(stage))
        classifier = TwoStageClassifier(
            anchor,
            glance,
            focus,
            num_patches=options.num_patches,
            iou_threshold=options.iou_threshold,
            glance_size=plan.configs["glance"].size,
            class_names=plan.class_names,
            preprocessing=plan.preprocessing,
            glance_name=options.backbone,
            focus_name=options.backbone,
        )
        classifier.eval()
        classifier.save_pretrained(plan.run / MODEL)
        return ()

    def load(self, folder: Path, device: torch.device) -> ExitSystem:
        """See `System.load`."""
        return TwoStageSystem.load(folder, device)


SYSTEM = AnchorNetSystem()

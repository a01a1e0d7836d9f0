"""The hyper-parameters of a stage: one dataclass, from which the command's flags are made."""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from anchornet_ext._options import add_options, read_options, to_json
from anchornet_ext._options import option as _option
from anchornet_ext.data.transforms import AUGMENTATIONS, Augmentation

SCHEDULES = ("step", "cosine", "constant")
OPTIMIZERS = ("sgd", "adamw")


@dataclass(frozen=True)
class StageConfig:
    """How one network is trained. Each field is a flag `--STAGE-FIELD`.

    Raises:
        ValueError: a value out of its range, named with its field.
    """

    epochs: int = _option(100, "passes over the training images")
    batch: int = _option(256, "network inputs in one step, over all processes")
    size: int = _option(224, "side in pixels of the network's input")
    optimizer: str = _option("sgd", "optimiser", OPTIMIZERS)
    lr: float = _option(0.1, "learning rate after the warm-up")
    schedule: str = _option("cosine", "how the learning rate falls", SCHEDULES)
    milestones: tuple[float, ...] = _option(
        (30.0, 60.0, 90.0), "of schedule step: when to multiply by gamma, in percent", count=-1
    )
    gamma: float = _option(0.1, "of schedule step: factor at each milestone")
    min_lr: float = _option(0.0, "of schedule cosine: where it ends")
    warmup_epochs: float = _option(0.0, "epochs of linear warm-up, part of the epochs")
    momentum: float = _option(0.9, "momentum (beta 1 of adamw)")
    nesterov: bool = _option(False, "Nesterov momentum")
    weight_decay: float = _option(1e-4, "weight decay")
    norm_weight_decay: bool = _option(True, "weight decay of biases and normalisation layers too")
    clip_norm: float = _option(0.0, "largest norm of the gradient; 0 does not clip")
    label_smoothing: float = _option(0.0, "share of the label spread over all classes")
    crop_scale: tuple[float, float] = _option(
        (0.08, 1.0), "range of the random crop's share of the area", count=2
    )
    crop_ratio: tuple[float, float] = _option(
        (3 / 4, 4 / 3), "range of the random crop's width / height", count=2
    )
    pad: int = _option(
        0, "pixels to pad the photo with, to crop at a random place; 0: crops of random size"
    )
    flip: float = _option(0.5, "probability of mirroring")
    augment: str = _option("none", "augmentation policy", AUGMENTATIONS)
    colour_jitter: tuple[float, float, float, float] = _option(
        (0.0, 0.0, 0.0, 0.0), "strength of brightness, contrast, saturation, hue", count=4
    )
    erasing: float = _option(0.0, "probability of erasing a random box")
    mixup: float = _option(0.0, "alpha of mixup; 0 is off")
    cutmix: float = _option(0.0, "alpha of cutmix; 0 is off; with mixup, one of both at random")
    ema: float = _option(0.0, "decay per step of an average of the weights; 0 is off")
    dropout: float = _option(0.0, "of the features before the classifier")

    def __post_init__(self) -> None:
        def need(holds: bool, name: str, wanted: str) -> None:
            if not holds:
                raise ValueError(f"{name} must be {wanted}, not {getattr(self, name)}")

        for name in ("milestones", "crop_scale", "crop_ratio", "colour_jitter"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        need(self.epochs >= 0, "epochs", "at least 0")
        need(self.batch >= 1, "batch", "at least 1")
        need(self.size >= 1, "size", "at least 1 pixel")
        need(self.optimizer in OPTIMIZERS, "optimizer", f"one of {', '.join(OPTIMIZERS)}")
        need(0 < self.lr < math.inf, "lr", "positive and finite")
        need(self.schedule in SCHEDULES, "schedule", f"one of {', '.join(SCHEDULES)}")
        increasing = all(a < b for a, b in zip(self.milestones, self.milestones[1:], strict=False))
        need(
            increasing and all(0 < m < 100 for m in self.milestones),
            "milestones",
            "increasing percentages of the epochs",
        )
        need(0 < self.gamma < math.inf, "gamma", "positive and finite")
        need(0 <= self.min_lr <= self.lr, "min_lr", "between 0 and lr")
        need(0 <= self.warmup_epochs <= self.epochs, "warmup_epochs", "between 0 and epochs")
        need(0 <= self.momentum < 1, "momentum", "within [0, 1)")
        need(not self.nesterov or self.momentum > 0, "nesterov", "off without momentum")
        need(0 <= self.weight_decay < math.inf, "weight_decay", "at least 0 and finite")
        need(0 <= self.clip_norm < math.inf, "clip_norm", "at least 0 and finite")
        need(0 <= self.label_smoothing < 1, "label_smoothing", "within [0, 1)")
        need(0 <= self.mixup < math.inf, "mixup", "at least 0 and finite")
        need(0 <= self.cutmix < math.inf, "cutmix", "at least 0 and finite")
        need(0 <= self.ema < 1, "ema", "within [0, 1)")
        need(0 <= self.dropout < 1, "dropout", "within [0, 1)")
        self.augmentation()  # checks the rest

    def augmentation(self, size: int | None = None) -> Augmentation:
        """What is done to the photos, for a training crop of `size` (None: `self.size`) pixels."""
        return Augmentation(
            size=self.size if size is None else size,
            scale=self.crop_scale,
            ratio=self.crop_ratio,
            pad=self.pad,
            flip=self.flip,
            policy=self.augment,
            colour_jitter=self.colour_jitter,
            erasing=self.erasing,
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields, ready for JSON."""
        return to_json(self)


@dataclass(frozen=True)
class Stage:
    """One of the networks that a system trains, one after the other.

    Attributes:
        name: also of its folder in RUN and of its flags, `--NAME-FIELD`.
        default: its hyper-parameters unless told otherwise.
        without: fields of `StageConfig` that mean nothing here and so are no flags. A stage without
            "size" sees the photo's crop (--crop-size).
        summary: what is trained, for --help.
    """

    name: str
    default: StageConfig
    without: Collection[str] = ()
    summary: str = ""


def add_stage_arguments(parser: argparse.ArgumentParser, stage: Stage) -> None:
    """Adds `--STAGE-FIELD` for every field that means something in `stage`."""
    group = parser.add_argument_group(f"stage {stage.name}", stage.summary or None)
    add_options(group, stage.default, stage.name.replace("-", "_"), stage.without)


def stage_config(args: argparse.Namespace, stage: Stage) -> StageConfig:
    """The config of `stage` that the flags say.

    Raises:
        ValueError: a value out of its range, naming the stage.
    """
    try:
        return read_options(args, stage.default, stage.name.replace("-", "_"))
    except ValueError as error:
        raise ValueError(f"stage {stage.name}: {error}") from error

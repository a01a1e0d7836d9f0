"""The four stages of AnchorNet's training (section 3.5) and what each needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from anchornet_ext import _extension
from anchornet_ext.data.image_folder import Samples
from anchornet_ext.data.loading import (
    EvalPhotos,
    OrderedBatches,
    ShuffledBatches,
    TrainPhotos,
    make_loader,
)
from anchornet_ext.data.sources import ImageSource
from anchornet_ext.data.transforms import Preprocessing, TrainTransform
from anchornet_ext.models import (
    AnchorNet,
    FoldedAnchorNet,
    build_backbone,
    localise,
    require_input_size,
)
from anchornet_ext.models.localise import random_places
from anchornet_ext.ops import gather_patches

from .checkpoint import load_weights
from .config import STAGES, StageConfig
from .distributed import World
from .run_log import RunLog
from .task import Task, TaskData

#: Localised by AnchorNet (section 3.5), or anywhere: a fair opponent for the former.
FOCUS_PATCHES = ("localised", "random")


@dataclass(frozen=True)
class Photos:
    """The decoded photos of one split with their labels."""

    source: ImageSource
    samples: Samples


@dataclass(frozen=True)
class Recipe:
    """What all stages share.

    Attributes:
        run: the folder of the run.
        backbone: name of the classification network.
        pretrained: start glance and focus from its published weights.
        backbone_weights: a safetensors file to start glance and focus from instead.
        class_names: of the n classes.
        preprocessing: what a photo goes through for anchor, glance and focus.
        num_patches, iou_threshold: how many patches are localised, and how far they may overlap.
        focus_patches: what the focus network is trained on, one of FOCUS_PATCHES.
        configs: stage -> its hyper-parameters.
        seed: of everything random.
        workers: processes that load photos, for each of training and validation.
    """

    run: Path
    backbone: str
    pretrained: bool
    backbone_weights: Path | None
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    num_patches: int
    iou_threshold: float
    focus_patches: str
    configs: dict[str, StageConfig]
    seed: int
    workers: int

    @property
    def num_classes(self) -> int:
        """n."""
        return len(self.class_names)

    def best(self, stage: str) -> Path:
        """Where the best weights of `stage` are, or will be."""
        return self.run / stage / "best.safetensors"


class GlanceTask(Task):
    """The network sees the whole photo, resized to a small square."""

    def inputs(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        size = (self.config.size, self.config.size)
        # Resizing and normalising commute (the weights of the resampling sum to 1), and
        # normalising the small image is cheaper.
        small = nn.functional.interpolate(
            images.float(), size=size, mode="bicubic", align_corners=True
        )
        return self.preprocessing.normalise(small), labels


class FocusTask(Task):
    """The network sees the patches of a photo that the frozen AnchorNet localises.

    Without an AnchorNet they are drawn by chance: the comparison of section 4.3. Inputs are ordered
    by photo, `num_patches` each; the label is repeated.
    """

    anchor: FoldedAnchorNet | None
    num_patches: int
    iou_threshold: float

    def inputs(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        patches = gather_patches(
            images,
            self._places(images),
            AnchorNet.patch_size,
            mean=self.preprocessing.mean,
            std=self.preprocessing.std,
            dtype=torch.float32,
        )
        return patches, labels.repeat_interleave(self.num_patches)

    def _places(self, images: Tensor) -> Tensor:
        """(B, num_patches, 2), (row, column)."""
        if self.anchor is None:
            size = (images.shape[2], images.shape[3])
            # From the global stream, which the loop seeds at each epoch.
            places = random_places(len(images), self.num_patches, size, AnchorNet.patch_size)
            return places.to(images.device)
        # Not in lower precision: these are to be the patches that inference will find.
        with torch.autocast(images.device.type, enabled=False):
            found = localise(
                self.anchor,
                self.preprocessing.normalise(images),
                self.num_patches,
                self.iou_threshold,
            )
        return found.selection.top_left

    def count_correct(self, output: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """Counts photos, by the sum of their patches' logits: what the classifier will use."""
        summed = output.float().view(-1, self.num_patches, output.shape[1]).sum(1)  # (B, n)
        return super().count_correct(summed, labels[:: self.num_patches])


def require_stages(recipe: Recipe, stages: Sequence[str], world: World) -> None:
    """Checks, before any work, that every stage will find what it needs.

    Raises:
        ValueError: a stage needs weights that neither a flag, RUN, nor an earlier stage gives, the
            backbone is unknown or does not take its input sizes, or a batch does not fit.
        ImportError: the stage focus needs the native operators and they do not load.
    """
    patch_size = AnchorNet.patch_size
    if {"backbone", "glance", "focus"} & set(stages):
        model = build_backbone(recipe.backbone, recipe.num_classes)
        sizes = {
            "backbone": recipe.configs["backbone"].size,
            "glance": recipe.configs["glance"].size,
            "focus": patch_size,
        }
        for stage in STAGES:
            if stage in stages and stage in sizes:
                require_input_size(model, sizes[stage])
    if recipe.backbone_weights is not None:
        load_weights(build_backbone(recipe.backbone, recipe.num_classes), recipe.backbone_weights)
    has_start = (
        recipe.pretrained
        or recipe.backbone_weights is not None
        or "backbone" in stages
        or recipe.best("backbone").is_file()
    )
    for stage in ("glance", "focus"):
        if stage in stages and not has_start:
            raise ValueError(
                f"stage {stage} starts from a trained backbone, and {str(recipe.run)!r} has none: "
                "run stage backbone first, or give --pretrained or --backbone-weights"
            )
    needs_anchor_size = {"anchor", "focus"} & set(stages)
    if needs_anchor_size and recipe.preprocessing.crop_size < patch_size:
        raise ValueError(
            f"--crop-size {recipe.preprocessing.crop_size} is smaller than AnchorNet's patches of "
            f"{patch_size} pixels"
        )
    if "focus" in stages:
        side = (recipe.preprocessing.crop_size - patch_size) // AnchorNet.stride + 1
        if recipe.num_patches > side * side:
            raise ValueError(
                f"--num-patches {recipe.num_patches} is too many: AnchorNet's map of a crop of "
                f"{recipe.preprocessing.crop_size} pixels has {side} x {side} places, at most "
                f"{side * side} patches"
            )
        needs_anchor = recipe.focus_patches == "localised"
        if needs_anchor and "anchor" not in stages and not recipe.best("anchor").is_file():
            raise ValueError(
                f"stage focus needs a trained AnchorNet, and {str(recipe.run)!r} has none: "
                "run stage anchor first"
            )
        _extension.require_device(world.device)
        batch = recipe.configs["focus"].batch
        if batch % (recipe.num_patches * world.size):
            raise ValueError(
                f"--focus-batch {batch} is not a multiple of {recipe.num_patches} patches x "
                f"{world.size} process(es)"
            )
    for stage in stages:
        if recipe.configs[stage].batch % world.size:
            raise ValueError(
                f"--{stage}-batch {recipe.configs[stage].batch} does not divide among "
                f"{world.size} processes"
            )


def initial_backbone(recipe: Recipe) -> nn.Module:
    """The trained backbone that glance and focus start from.

    Raises:
        ValueError: its weights are missing or do not fit.
        OSError: published weights cannot be downloaded.
    """
    if recipe.pretrained:
        try:
            return build_backbone(recipe.backbone, recipe.num_classes, pretrained=True)
        except RuntimeError as error:
            raise OSError(str(error)) from error
    model = build_backbone(recipe.backbone, recipe.num_classes)
    load_weights(model, recipe.backbone_weights or recipe.best("backbone"))
    return model


def build_task(
    stage: str, recipe: Recipe, train: Photos, val: Photos, world: World, log: RunLog
) -> Task:
    """The task of `stage`; earlier stages' weights must be in RUN by now.

    Raises:
        ValueError, OSError: as `initial_backbone`.
    """
    # What the network starts from when nothing else says so.
    torch.manual_seed(recipe.seed)
    config = recipe.configs[stage]
    preprocessing = recipe.preprocessing
    images_per_step = config.batch
    if stage == "backbone":
        preprocessing = preprocessing.with_crop_size(config.size)
        model = build_backbone(recipe.backbone, recipe.num_classes)
        kind: type[Task] = Task
    elif stage == "anchor":
        model = AnchorNet(recipe.num_classes, dropout=config.dropout)
        kind = Task
    else:
        model = initial_backbone(recipe)
        kind = GlanceTask if stage == "glance" else FocusTask
        if stage == "focus":
            images_per_step = config.batch // recipe.num_patches
    data = _build_data(recipe, config, preprocessing, images_per_step, train, val, world, log)
    task = kind(stage, model, config, data, preprocessing, recipe.num_classes)
    if isinstance(task, FocusTask):
        task.anchor = None
        if recipe.focus_patches == "localised":
            anchor = AnchorNet(recipe.num_classes)
            load_weights(anchor, recipe.best("anchor"))
            # Folded: the same map for less work, and nothing in it is trained.
            task.anchor = anchor.eval().fold().to(world.device).requires_grad_(False)
        task.num_patches = recipe.num_patches
        task.iou_threshold = recipe.iou_threshold
    return task


def _build_data(
    recipe: Recipe,
    config: StageConfig,
    preprocessing: Preprocessing,
    images_per_step: int,
    train: Photos,
    val: Photos,
    world: World,
    log: RunLog,
) -> TaskData:
    count = len(train.samples)
    if images_per_step > count:
        images_per_step = count // world.size * world.size
        log.line(f"only {count} training images: one step of {images_per_step} an epoch")
    order = ShuffledBatches(count, images_per_step, recipe.seed, world.rank, world.size)
    transform = TrainTransform(
        # The size of a glance is that of the resized crop, which stays --crop-size.
        config.augmentation(preprocessing.crop_size),
        fill=preprocessing.mean,
    )
    pin = world.device.type == "cuda"
    train_photos = TrainPhotos(train.source, train.samples.labels, transform, recipe.seed)
    val_photos = EvalPhotos(val.source, val.samples.labels, preprocessing)
    # No gradients in validation, so a batch may be as large as in training; not larger, or the
    # memory that training was fitted to would not do.
    val_batch = max(1, images_per_step // world.size)
    val_order = OrderedBatches(len(val.samples), val_batch, world.rank, world.size)
    return TaskData(
        make_loader(train_photos, order, recipe.workers, pin),
        order,
        make_loader(val_photos, val_order, recipe.workers, pin),
    )

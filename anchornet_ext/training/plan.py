"""What a run trains on and with, whatever the system; and the batches of one of its stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

from .config import StageConfig
from .distributed import World
from .run_log import RunLog
from .task import TaskData


@dataclass(frozen=True)
class Photos:
    """The decoded photos of one split with their labels."""

    source: ImageSource
    samples: Samples


@dataclass(frozen=True)
class Plan:
    """What all stages of a run share.

    Attributes:
        run: the folder of the run.
        class_names: of the n classes.
        preprocessing: what a photo goes through before a network sees it.
        options: of the system, an instance of its `Options`.
        configs: stage -> its hyper-parameters.
        seed: of everything random.
        workers: processes that load photos, for each of training and validation.
    """

    run: Path
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    options: Any
    configs: Mapping[str, StageConfig]
    seed: int
    workers: int

    @property
    def num_classes(self) -> int:
        """n."""
        return len(self.class_names)

    def best(self, stage: str) -> Path:
        """Where the best weights of `stage` are, or will be."""
        return self.run / stage / "best.safetensors"


@dataclass(frozen=True)
class Supply:
    """Where the photos of a run come from, and who trains on them.

    Attributes:
        train, val: the two splits.
        world: the processes that train together.
        log: where to report.
    """

    train: Photos
    val: Photos
    world: World
    log: RunLog

    def batches(
        self,
        plan: Plan,
        config: StageConfig,
        preprocessing: Preprocessing | None = None,
        images_per_step: int | None = None,
    ) -> TaskData:
        """The batches of one stage on this process.

        Args:
            plan: of the run.
            config: of the stage: its augmentation and its batch.
            preprocessing: whose crop the photos are brought to; None: the plan's.
            images_per_step: photos of a step, over all processes; None: `config.batch`.
        """
        preprocessing = preprocessing or plan.preprocessing
        images = images_per_step or config.batch
        count, world = len(self.train.samples), self.world
        if images > count:
            images = count // world.size * world.size
            self.log.line(f"only {count} training images: one step of {images} an epoch")
        order = ShuffledBatches(count, images, plan.seed, world.rank, world.size)
        transform = TrainTransform(
            # What a network shrinks by itself is the crop, which stays --crop-size.
            config.augmentation(preprocessing.crop_size),
            fill=preprocessing.mean,
        )
        pin = world.device.type == "cuda"
        train = TrainPhotos(self.train.source, self.train.samples.labels, transform, plan.seed)
        val = EvalPhotos(self.val.source, self.val.samples.labels, preprocessing)
        # No gradients in validation, so a batch may be as large as in training; not larger, or the
        # memory that training was fitted to would not do.
        val_batch = max(1, images // world.size)
        val_order = OrderedBatches(len(self.val.samples), val_batch, world.rank, world.size)
        return TaskData(
            make_loader(train, order, plan.workers, pin),
            order,
            make_loader(val, val_order, plan.workers, pin),
        )

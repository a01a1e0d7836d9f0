"""The training loop that every stage of every system shares."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from anchornet_ext.data.loading import Batch, hash_seed

from .average import WeightAverage
from .checkpoint import load_state, save_state, save_weights
from .config import StageConfig
from .distributed import World
from .run_log import RunLog, format_duration, write_csv
from .schedule import learning_rate
from .task import Task, build_optimizer

AMP_CHOICES = ("auto", "off", "bf16", "fp16")
_STATE_VERSION = 1


@dataclass(frozen=True)
class LoopOptions:
    """How to compute, which does not change what is computed (but for rounding).

    Attributes:
        amp: "auto" is bf16 (fp16 where the GPU has no bf16) on CUDA and off on the CPU.
        channels_last: keep the images and the weights of convolutions in that order.
        compile: run the network through torch.compile.
        sync_batch_norm: statistics of batch norm over all processes (CUDA).
        resume: go on from RUN/STAGE/last.pt where there is one.
        seed: of everything random.
    """

    amp: str = "auto"
    channels_last: bool = True
    compile: bool = False
    sync_batch_norm: bool = False
    resume: bool = False
    seed: int = 0


@dataclass
class Result:
    """What a stage reached: validation top-1 in [0, 1], and after how many epochs."""

    best_top1: float
    best_epoch: int


@dataclass
class _Sums:
    """Sums over the inputs of an epoch; tensors, so that a GPU need not wait at every step."""

    loss: Tensor | float = 0.0
    correct: Tensor | float = 0.0
    inputs: int = 0
    predictions: int = 0
    images: int = 0
    measures: Tensor | float = 0.0

    def add(self, loss: Tensor, inputs: int, correct: Tensor, predictions: int) -> None:
        self.loss = self.loss + loss.detach() * inputs
        self.correct = self.correct + correct
        self.inputs += inputs
        self.predictions += predictions

    def over(self, world: World) -> tuple[float, float]:
        """(mean loss, top-1) over all processes."""
        loss, correct, inputs, predictions = world.sum(
            [float(self.loss), float(self.correct), self.inputs, self.predictions]
        )
        return loss / max(1.0, inputs), correct / max(1.0, predictions)

    def measures_over(self, world: World, names: Sequence[str]) -> dict[str, float]:
        """Means of the task's own figures over all processes, of which some may have no photo."""
        own = self.measures.tolist() if isinstance(self.measures, Tensor) else [0.0] * len(names)
        inputs, *sums = world.sum([self.inputs, *own])
        return {name: value / max(1.0, inputs) for name, value in zip(names, sums, strict=True)}

    def status(self) -> str:
        loss = float(self.loss) / max(1, self.inputs)
        return f"loss {loss:.3f} top-1 {100 * float(self.correct) / max(1, self.predictions):.1f}%"


@dataclass
class _Progress:
    """What changes from epoch to epoch and is not in a module."""

    epoch: int = 0
    best_top1: float = -1.0
    best_epoch: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)


def autocast_dtype(amp: str, device: torch.device) -> torch.dtype | None:
    """The dtype to autocast to, None for none.

    Raises:
        ValueError: `amp` is none of AMP_CHOICES.
    """
    if amp not in AMP_CHOICES:
        raise ValueError(f"amp must be one of {', '.join(AMP_CHOICES)}, not {amp!r}")
    if amp == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[amp]


class Trainer:
    """Trains one task in RUN/STAGE.

    Writes best.safetensors (the weights, or their average, of the epoch with the highest validation
    top-1), last.pt (everything needed to go on) and log.csv.

    A resumed run ends with the same weights as an uninterrupted one: the order of the photos and
    their augmentation depend on (seed, epoch, photo), the learning rate on the step, and torch's
    random stream (dropout, mixup) is seeded anew at each epoch, so that no stream has to be saved.

    Args:
        task: what to train.
        folder: RUN/STAGE.
        world: the processes that train together.
        options: how to compute.
        log: where to report.
        identity: what must not change between a run and its resumption, beside the task's config.

    Raises:
        ValueError: `folder` holds a run and `options.resume` is off, or what it holds was trained
            with another config or identity.
    """

    def __init__(
        self,
        task: Task,
        folder: Path,
        world: World,
        options: LoopOptions,
        log: RunLog,
        identity: dict[str, Any],
    ) -> None:
        self.task = task
        self.folder = folder
        self.world = world
        self.options = options
        self.log = log
        self.device = world.device
        self.dtype = autocast_dtype(options.amp, self.device)
        self.model = task.model.to(self.device)
        if options.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        if options.sync_batch_norm and world.size > 1:
            convert: Any = nn.SyncBatchNorm.convert_sync_batchnorm  # has no annotations
            self.model = convert(self.model)
        self.optimizer = build_optimizer(task.parameter_groups(), task.config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.average = WeightAverage(self.model, task.config.ema) if task.config.ema > 0 else None
        self.progress = _Progress()
        self.identity = {"config": task.config.to_dict(), **identity}
        self._restore()
        self.train_model: Any = self.model
        if world.size > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.train_model = DistributedDataParallel(
                self.model, device_ids=ids, find_unused_parameters=task.finds_unused
            )
        self.eval_model: Any = self.average.module if self.average else self.model
        if options.compile:
            self.train_model = torch.compile(self.train_model)
            self.eval_model = torch.compile(self.eval_model)

    # -- state ------------------------------------------------------------------------------------

    @property
    def best_path(self) -> Path:
        """The best weights."""
        return self.folder / "best.safetensors"

    @property
    def state_path(self) -> Path:
        """The state after the last whole epoch."""
        return self.folder / "last.pt"

    def _restore(self) -> None:
        state = load_state(self.state_path)
        if state is None:
            return
        if not self.options.resume:
            raise ValueError(
                f"{str(self.folder)!r} already holds a run of stage {self.task.name}; "
                "use --resume to go on with it, --overwrite to begin anew, or another --out"
            )
        if state.get("version") != _STATE_VERSION:
            raise ValueError(
                f"{str(self.state_path)!r} is of version {state.get('version')}, "
                f"not {_STATE_VERSION}"
            )
        _require_same(state["identity"], self.identity, self.task.name)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty where it was off; resuming in fp16 begins with a fresh one
            self.scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
            self.average.updates = state["average_updates"]
        self.progress = _Progress(**state["progress"])
        self.log.line(f"{self.task.name}: resumed after epoch {self.progress.epoch}")

    def _save(self) -> None:
        if not self.world.is_main:
            return
        average = self.average
        # The best weights come first: killed in between, the epoch is repeated and they are
        # written again, the same.
        if self.progress.best_epoch == self.progress.epoch:
            module = average.module if average else self.model
            metadata = {
                "stage": self.task.name,
                "epoch": str(self.progress.epoch),
                "top1": f"{self.progress.best_top1:.6f}",
            }
            save_weights(self.best_path, module.state_dict(), metadata)
        save_state(
            self.state_path,
            {
                "version": _STATE_VERSION,
                "identity": self.identity,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "average": average.module.state_dict() if average else None,
                "average_updates": average.updates if average else 0,
                "progress": dataclasses.asdict(self.progress),
            },
        )
        write_csv(self.folder / "log.csv", self.progress.rows)

    # -- epochs -----------------------------------------------------------------------------------

    def fit(self) -> Result:
        """Trains until `config.epochs` epochs are over; at once if they are.

        Raises:
            ValueError: the loss is no longer a finite number.
        """
        config, progress = self.task.config, self.progress
        while progress.epoch < config.epochs:
            begun = time.monotonic()
            lr = learning_rate(config, progress.epoch)
            train_loss, train_top1, data_seconds, rate = self._train_epoch(progress.epoch)
            train_seconds = time.monotonic() - begun
            progress.epoch += 1
            over = progress.epoch / config.epochs
            self.task.begin_step(over)
            val_loss, val_top1, measured = self._validate()
            if not math.isfinite(train_loss):
                raise ValueError(
                    f"stage {self.task.name} diverged in epoch {progress.epoch}: its loss is "
                    f"{train_loss}; try a smaller learning rate, a warm-up or --amp off"
                )
            if val_top1 > progress.best_top1 and self.task.may_keep(over):
                progress.best_top1, progress.best_epoch = val_top1, progress.epoch
            seconds = time.monotonic() - begun
            row = {
                "epoch": progress.epoch,
                "lr": lr,
                "train_loss": train_loss,
                "train_top1": train_top1,
                "val_loss": val_loss,
                "val_top1": val_top1,
                **{f"val_{name}": value for name, value in measured.items()},
                "seconds": round(seconds, 3),
                "train_seconds": round(train_seconds, 3),
                "data_wait_seconds": round(data_seconds, 3),
                "images_per_second": round(rate, 2),
            }
            progress.rows.append(row)
            self._save()
            self.world.barrier()
            left = (config.epochs - progress.epoch) * seconds
            more = "".join(f"{name} {value:.4g} " for name, value in measured.items())
            best = (
                f"best {100 * progress.best_top1:.2f}% at {progress.best_epoch}"
                if progress.best_epoch
                else "none to keep yet"
            )
            self.log.line(
                f"{self.task.name} epoch {progress.epoch}/{config.epochs} lr {lr:.3g} "
                f"train loss {train_loss:.4f} top-1 {100 * train_top1:.2f}% "
                f"val loss {val_loss:.4f} top-1 {100 * val_top1:.2f}% {more}({best}) "
                f"{rate:.0f} images/s, {format_duration(seconds)}, left {format_duration(left)}"
            )
            figures = {key: value for key, value in row.items() if key != "epoch"}
            self.log.scalars(self.task.name, progress.epoch, figures)
        if progress.epoch == 0:  # no epochs asked for: the initial weights are the result
            self.task.begin_step(1.0)
            progress.best_top1, progress.best_epoch = self._validate()[1], 0
            self._save()
            self.world.barrier()
        return Result(progress.best_top1, progress.best_epoch)

    def _autocast(self) -> Any:
        return torch.autocast(
            self.device.type, dtype=self.dtype or torch.bfloat16, enabled=self.dtype is not None
        )

    def _to_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        for reason in batch.unreadable:
            self.log.once(f"skipped an unreadable image: {reason}")
        images = batch.images.to(self.device, non_blocking=True)
        if not self.options.channels_last:
            images = images.contiguous()
        return images, batch.labels.to(self.device, non_blocking=True)

    def _train_epoch(self, epoch: int) -> tuple[float, float, float, float]:
        task, config = self.task, self.task.config
        # Dropout and mixup differ between processes, stages and epochs, and repeat on resuming.
        torch.manual_seed(hash_seed(self.options.seed, task.name, epoch, self.world.rank))
        self.train_model.train()
        task.data.order.epoch = epoch
        steps = len(task.data.order)
        sums = _Sums()
        self.log.begin(f"{task.name} {epoch + 1}/{config.epochs}", steps)
        begun = waiting_since = time.monotonic()
        data_seconds = 0.0
        for step, batch in enumerate(task.data.train):
            data_seconds += time.monotonic() - waiting_since
            now = epoch + step / steps
            task.begin_step(now / config.epochs)
            for group in self.optimizer.param_groups:
                # States of before there were groups do not say at which rate they learn.
                group["lr"] = learning_rate(config, now) * group.get("rate", 1.0)
            images, labels = self._to_device(batch)
            loss, inputs, correct, predictions = self._step(images, labels)
            sums.add(loss, inputs, correct, predictions)
            sums.images += len(images)
            if self.log.due():
                rate = sums.images * self.world.size / (time.monotonic() - begun)
                self.log.update(step + 1, f"{sums.status()} {rate:.0f} images/s")
            waiting_since = time.monotonic()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        rate = sums.images * self.world.size / (time.monotonic() - begun)
        self.log.end()
        return (*sums.over(self.world), data_seconds, rate)

    def _step(self, images: Tensor, labels: Tensor) -> tuple[Tensor, int, Tensor, int]:
        task = self.task
        with torch.no_grad(), self._autocast():
            inputs, labels = task.inputs(images, labels)
            mixed, target = task.mix(inputs, labels)
        with self._autocast():
            output = self.train_model(mixed)
        loss = task.loss(output, target, training=True)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(loss))
        if task.config.clip_norm > 0:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), task.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.model)
        with torch.no_grad():
            correct, predictions = task.count_correct_in_training(output, labels)
        return loss, len(mixed), correct, predictions

    @torch.no_grad()
    def _validate(self) -> tuple[float, float, dict[str, float]]:
        """(mean loss, top-1, the task's own figures)."""
        task = self.task
        module = self.average.module if self.average else self.model
        if self.world.size > 1:
            # Each process has its own running statistics; those of rank 0 are the ones saved.
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)
        self.eval_model.eval()
        sums = _Sums()
        self.log.begin(f"{task.name} validation", len(task.data.val))
        for step, batch in enumerate(task.data.val):
            images, labels = self._to_device(batch)
            if len(images) == 0:
                continue
            with self._autocast():
                inputs, labels = task.inputs(images, labels)
                output = self.eval_model(inputs)
            loss = task.loss(output, labels, training=False)
            sums.add(loss, len(inputs), *task.count_correct(output, labels))
            sums.measures = sums.measures + task.measures(output, labels)
            if self.log.due():
                self.log.update(step + 1, sums.status())
        self.log.end()
        return (*sums.over(self.world), sums.measures_over(self.world, task.measure_names))


def _require_same(before: dict[str, Any], now: dict[str, Any], stage: str) -> None:
    def flatten(values: dict[str, Any]) -> dict[str, Any]:
        return {**{k: v for k, v in values.items() if k != "config"}, **values["config"]}

    old, new = flatten(before), flatten(now)
    # A hyper-parameter that a later version added was at its default before.
    old = {**StageConfig().to_dict(), **old}
    different = [key for key in new if key in old and old[key] != new[key]]
    if different:
        key = different[0]
        raise ValueError(
            f"stage {stage} was begun with {key} = {_short(old.get(key))} and cannot be resumed "
            f"with {_short(new[key])}"
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

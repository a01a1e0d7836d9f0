"""What a stage adds to the training loop: its network, its data, and how one becomes the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from anchornet_ext.data.loading import Batch, ShuffledBatches
from anchornet_ext.data.transforms import Preprocessing

from .config import StageConfig


@dataclass
class TaskData:
    """The batches of a stage on this process.

    Attributes:
        train: training batches, whose order `order` decides.
        order: its batch sampler; the loop sets its epoch.
        val: validation batches.
    """

    train: DataLoader[Batch]
    order: ShuffledBatches
    val: DataLoader[Batch]


class Task:
    """One network trained on labelled photos.

    Subclasses change what the network sees (`inputs`), what it is trained for (`loss`), how far it
    has come (`count_correct`, `measures`), what changes as training goes on (`begin_step`), when
    the result is ready to be kept (`may_keep`), and which parameters learn at which rate
    (`parameter_groups`).

    A task keeps no state from step to step, or a resumed run would not equal an uninterrupted one:
    what changes with time is a function of the progress that `begin_step` is told.

    Args:
        name: of the stage.
        model: the network, on its device.
        config: its hyper-parameters.
        data: its batches.
        preprocessing: the mean and std that the network expects.
        num_classes: n.

    Attributes:
        finds_unused: whether some parameters of the network may not take part in a loss, which
            several processes must know to wait for each other's gradients.
        measure_names: of what `measures` gives: further columns of log.csv.
    """

    finds_unused = False
    measure_names: Sequence[str] = ()

    def __init__(
        self,
        name: str,
        model: nn.Module,
        config: StageConfig,
        data: TaskData,
        preprocessing: Preprocessing,
        num_classes: int,
    ) -> None:
        self.name = name
        self.model = model
        self.config = config
        self.data = data
        self.preprocessing = preprocessing
        mixes = []
        if config.mixup > 0:
            mixes.append(v2.MixUp(alpha=config.mixup, num_classes=num_classes))
        if config.cutmix > 0:
            mixes.append(v2.CutMix(alpha=config.cutmix, num_classes=num_classes))
        self._mix: Any = v2.RandomChoice(mixes) if mixes else None

    def begin_step(self, progress: float) -> None:
        """Called before each step of training, and before each validation.

        Args:
            progress: the share of the stage's training that is over, 0 to 1.
        """

    def may_keep(self, progress: float) -> bool:
        """Whether weights of this moment can be the best ones; at the end of training they can.

        No where training begins with what is easier than its goal, and would look best there.
        """
        return True

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """Which parameters learn, and at which multiple of the stage's learning rate."""
        return [ParameterGroup(self.model)]

    def inputs(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Photos uint8 (B, 3, S, S) and labels (B) to network inputs (M, ...) and labels (M)."""
        return self.preprocessing.normalise(images), labels

    def mix(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mixup or cutmix in training; targets become (M, n) probabilities."""
        if self._mix is None:
            return inputs, labels
        mixed: tuple[Tensor, Tensor] = self._mix(inputs, labels)
        return mixed

    def loss(self, output: Any, target: Tensor, training: bool) -> Tensor:
        """Mean cross-entropy; label smoothing is for training only."""
        smoothing = self.config.label_smoothing if training else 0.0
        return nn.functional.cross_entropy(output.float(), target, label_smoothing=smoothing)

    def measures(self, output: Any, labels: Tensor) -> Tensor:
        """In validation: figures for log.csv, one for each of `measure_names`.

        Each is the sum over the M inputs of the batch; what is logged is the mean over all inputs.
        """
        return torch.zeros(len(self.measure_names), device=labels.device)

    def count_correct(self, output: Any, labels: Tensor) -> tuple[Tensor, int]:
        """In validation: how many predictions are right, and of how many.

        Their share decides which epoch's weights are the best.
        """
        return (output.argmax(1) == labels).sum(), len(labels)

    def count_correct_in_training(self, output: Any, labels: Tensor) -> tuple[Tensor, int]:
        """The same during training, against the labels before mixing."""
        return Task.count_correct(self, output, labels)


@dataclass
class ParameterGroup:
    """Parameters that learn at one rate.

    Attributes:
        module: whose parameters they are; those that need no gradient are left out.
        rate: by which the stage's learning rate is multiplied for them.
    """

    module: nn.Module
    rate: float = 1.0


def build_optimizer(
    model: nn.Module | Sequence[ParameterGroup], config: StageConfig
) -> torch.optim.Optimizer:
    """The optimiser of `config` over the parameters of `model`, or over several groups of them.

    A group of the optimiser says by "rate" what its learning rate is a multiple of `config.lr`.

    Raises:
        ValueError: a parameter is in two groups, or none learns.
    """
    parts = [ParameterGroup(model)] if isinstance(model, nn.Module) else model
    groups: list[dict[str, Any]] = []
    for part in parts:
        decayed: list[nn.Parameter] = []
        plain: list[nn.Parameter] = []
        for parameter in part.module.parameters():
            if not parameter.requires_grad:
                continue
            # One dimension: biases and the scales and shifts of normalisation.
            is_plain = parameter.ndim <= 1 and not config.norm_weight_decay
            (plain if is_plain else decayed).append(parameter)
        for parameters, decay in ((decayed, config.weight_decay), (plain, 0.0)):
            if parameters:
                groups.append(
                    {
                        "params": parameters,
                        "weight_decay": decay,
                        "lr": config.lr * part.rate,
                        "rate": part.rate,
                    }
                )
    if not groups:
        raise ValueError("there is nothing to train: no parameter needs a gradient")
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999))
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)

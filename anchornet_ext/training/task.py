"""What a stage adds to the training loop: its network, its data, and how one becomes the other."""

from __future__ import annotations

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
    """One network trained on labelled photos; subclasses change what the network sees.

    Args:
        name: of the stage.
        model: the network, on its device.
        config: its hyper-parameters.
        data: its batches.
        preprocessing: the mean and std that the network expects.
        num_classes: n.
    """

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

    def inputs(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Photos uint8 (B, 3, S, S) and labels (B) to network inputs (M, ...) and labels (M)."""
        return self.preprocessing.normalise(images), labels

    def mix(self, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mixup or cutmix in training; targets become (M, n) probabilities."""
        if self._mix is None:
            return inputs, labels
        mixed: tuple[Tensor, Tensor] = self._mix(inputs, labels)
        return mixed

    def loss(self, output: Tensor, target: Tensor, training: bool) -> Tensor:
        """Mean cross-entropy; label smoothing is for training only."""
        smoothing = self.config.label_smoothing if training else 0.0
        return nn.functional.cross_entropy(output.float(), target, label_smoothing=smoothing)

    def count_correct(self, output: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """In validation: how many predictions are right, and of how many."""
        return (output.argmax(1) == labels).sum(), len(labels)

    def count_correct_in_training(self, output: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """The same during training, against the labels before mixing."""
        return Task.count_correct(self, output, labels)


def build_optimizer(model: nn.Module, config: StageConfig) -> torch.optim.Optimizer:
    """The optimiser of `config` over the parameters of `model`."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        # One dimension: biases and the scales and shifts of normalisation.
        is_plain = parameter.ndim <= 1 and not config.norm_weight_decay
        (plain if is_plain else decayed).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": config.weight_decay}]
    if plain:
        groups.append({"params": plain, "weight_decay": 0.0})
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999))
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)

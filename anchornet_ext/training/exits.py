"""Training a network for all of its exits together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from anchornet_ext.data.transforms import Preprocessing

from .config import StageConfig
from .task import Task, TaskData


class ExitsTask(Task):
    """The loss is the sum of all exits' cross-entropies, as MSDNet's and RANet's authors have it.

    The network gives (T, B, n). The epoch that is kept is the one with the highest top-1 on average
    over the exits; log.csv has that of each exit.

    Args:
        name, model, config, data, preprocessing, num_classes: see `Task`.
        num_exits: T.
    """

    #: Of the last layers, not all scales lead to a classifier.
    finds_unused = True

    def __init__(
        self,
        name: str,
        model: nn.Module,
        config: StageConfig,
        data: TaskData,
        preprocessing: Preprocessing,
        num_classes: int,
        num_exits: int,
    ) -> None:
        super().__init__(name, model, config, data, preprocessing, num_classes)
        self.measure_names = tuple(f"top1_exit{t}" for t in range(1, num_exits + 1))

    def loss(self, output: Any, target: Tensor, training: bool) -> Tensor:
        """The sum over the exits."""
        exits = [super(ExitsTask, self).loss(logits, target, training) for logits in output]
        return torch.stack(exits).sum()

    def measures(self, output: Any, labels: Tensor) -> Tensor:
        """(T,) right answers of each exit."""
        right: Tensor = output.argmax(2) == labels
        return right.sum(1).double()

    def count_correct(self, output: Any, labels: Tensor) -> tuple[Tensor, int]:
        """Over all exits."""
        return (output.argmax(2) == labels).sum(), output.shape[0] * len(labels)

    def count_correct_in_training(self, output: Any, labels: Tensor) -> tuple[Tensor, int]:
        """The same."""
        return self.count_correct(output, labels)

"""Training a SAR network: sampled masks, their annealing, and the target that holds them."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from anchornet_ext.data.transforms import Preprocessing
from anchornet_ext.models.sar import (
    SARNetwork,
    decide,
    refinement_loss,
    sample,
    target_rate,
    temperature,
)

from .config import StageConfig
from .task import Task, TaskData


class Refined(NamedTuple):
    """What a SAR network says of B images."""

    logits: Tensor
    """(B, n)."""
    rates: Tensor
    """(L, B): the share of the cells that each refinement block computes (Eq. 7)."""


class SARLearner(nn.Module):
    """A SAR network with its activation rates: images (B, 3, H, W) to `Refined`.

    In training the masks are sampled, at `network.temperature`; in evaluation they are decided.
    """

    def __init__(self, network: SARNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Refined:
        """See the class."""
        network = self.network
        choose = partial(sample, temperature=network.temperature) if self.training else decide
        logits, masks = network.run(images, choose)
        rates = [mask.to(logits.dtype).mean((2, 3, 4)) for mask in masks]  # (L, B) of each module
        return Refined(logits, torch.cat(rates))


class SARTask(Task):
    """Eq. 11: cross-entropy, and how far the blocks' activation is from the target.

    Args:
        name, learner, config, data, preprocessing, num_classes: see `Task`.
        target: t, the activation in the end.
        penalty: lambda, the weight of the second part.
    """

    measure_names = ("activation",)

    def __init__(
        self,
        name: str,
        learner: SARLearner,
        config: StageConfig,
        data: TaskData,
        preprocessing: Preprocessing,
        num_classes: int,
        target: float,
        penalty: float,
    ) -> None:
        super().__init__(name, learner, config, data, preprocessing, num_classes)
        self._learner = learner
        self._target = target
        self._penalty = penalty
        self._target_now = 1.0

    def begin_step(self, progress: float) -> None:
        """Anneals the temperature and lowers the target."""
        self._learner.network.temperature = temperature(progress)
        self._target_now = target_rate(progress, self._target)

    def may_keep(self, progress: float) -> bool:
        """Not while more is refined than in the end: that would be the better network."""
        return target_rate(progress, self._target) == self._target

    def loss(self, output: Any, target: Tensor, training: bool) -> Tensor:
        """See the class; in validation too, with the target of that time."""
        classified = super().loss(output.logits, target, training)
        return classified + self._penalty * refinement_loss(output.rates.unbind(), self._target_now)

    def measures(self, output: Any, labels: Tensor) -> Tensor:
        """(1,) the activation rates of the images, summed."""
        of_images: Tensor = output.rates.double().mean(0)
        return of_images.sum()[None]

    def count_correct(self, output: Any, labels: Tensor) -> tuple[Tensor, int]:
        """See `Task`."""
        return super().count_correct(output.logits, labels)

    def count_correct_in_training(self, output: Any, labels: Tensor) -> tuple[Tensor, int]:
        """See `Task`."""
        return super().count_correct_in_training(output.logits, labels)

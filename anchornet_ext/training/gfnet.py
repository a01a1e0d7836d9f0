"""What the three stages of GFNet's training compute (section 3.3 and appendix A)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from anchornet_ext.data.transforms import Preprocessing
from anchornet_ext.models.gfnet import GFNet
from anchornet_ext.models.gfnet.proposal import entropy, log_probability, places

from .config import StageConfig
from .ppo import PPOConfig, discounted_returns, normalised, ppo_loss, rewards_of
from .task import ParameterGroup, Task, TaskData

#: How stages I and III place the patches.
ACTIONS = ("random", "policy")


class SequenceLearner(nn.Module):
    """Stages I and III: the encoders and the classifier on whole sequences.

    Training inputs are images (B, 3, H, W); the output is (2, T, B, n): the classifier's logits at
    every exit, and those of the heads that keep the features linearly separable, Eq. (3). In eval
    mode the patches are those of the policy, as they will be in use; but in stage I, where there is
    no policy yet, they are drawn by chance in either mode.

    Args:
        network: trained but for its proposal network, which is frozen.
        actions: "random": anywhere with equal probability (stage I); "policy": where the proposal
            network says (stage III).
        freeze_glance: keep f_G as it is (MobileNets and EfficientNets, appendix A.3).

    Raises:
        ValueError: `actions` is none of ACTIONS.
    """

    def __init__(self, network: GFNet, actions: str, freeze_glance: bool = False) -> None:
        super().__init__()
        if actions not in ACTIONS:
            raise ValueError(f"actions must be one of {', '.join(ACTIONS)}, got {actions!r}")
        self.network = network
        self.actions = actions
        self._frozen: tuple[nn.Module, ...] = (network.proposal,)
        if freeze_glance:
            self._frozen += (network.glance,)
        network.requires_grad_(True)
        for part in self._frozen:
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> SequenceLearner:
        """The frozen parts stay in eval mode: their batch norms must not learn either."""
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        network = self.network
        network.check_images(images)
        size = (images.shape[2], images.shape[3])
        rows = torch.arange(len(images), device=images.device)
        step = network.first_step(images)
        steps = [step]
        memory = None
        for _ in range(network.num_exits - 1):
            if self.actions == "random":
                action = torch.rand(len(images), 2, device=images.device)
            else:
                with torch.no_grad():
                    action, _, memory = network.propose(step.features, memory)
            top_left = places(action, size, network.patch_size)
            step = network.next_step(images, rows, top_left, step.seen)
            steps.append(step)
        heads = [head(one.vector) for head, one in zip(network.heads, steps, strict=True)]
        return torch.stack([torch.stack([one.logits for one in steps]), torch.stack(heads)])


def sequence_loss(
    output: Tensor, target: Tensor, regularisation: float, label_smoothing: float = 0.0
) -> Tensor:
    """Eq. (3): the mean over images and steps of both cross-entropies.

    Args:
        output: (2, T, B, n), see `SequenceLearner`.
        target: (B,) int64, or (B, n) probabilities.
        regularisation: lambda, the weight of the heads' part.
        label_smoothing: share of the label spread over all classes.
    """
    classified, linear = (
        torch.stack(
            [
                functional.cross_entropy(step.float(), target, label_smoothing=label_smoothing)
                for step in part
            ]
        ).mean()
        for part in output
    )
    return classified + regularisation * linear


class Rollout(NamedTuple):
    """Sequences whose patches the policy chose."""

    logits: Tensor
    """(T, B, n) of every exit; no gradient."""
    log_probability: Tensor
    """(T - 1, B) of the actions taken."""
    values: Tensor
    """(T - 1, B), what the critic expected of them."""


class PolicyLearner(nn.Module):
    """Stage II: the proposal network alone, everything else frozen.

    In training mode actions are drawn around the network's; in eval mode they are the network's.

    As every batch serves for one update (appendix A.2), the policy that takes the actions is the
    one that is updated, and one pass through it gives both the actions and their probabilities with
    gradients; its GRU is unrolled over the whole sequence.

    Args:
        network: whose proposal network is trained.
        config: of the PPO.
    """

    def __init__(self, network: GFNet, config: PPOConfig) -> None:
        super().__init__()
        self.network = network
        self.config = config
        network.requires_grad_(False)
        network.proposal.requires_grad_(True)

    def train(self, mode: bool = True) -> PolicyLearner:
        """Only the proposal network ever leaves eval mode."""
        super().train(mode)
        self.network.eval()
        self.network.proposal.train(mode)
        return self

    def forward(self, images: Tensor) -> Rollout:
        """Images (B, 3, H, W) to sequences."""
        network, std = self.network, self.config.std
        network.check_images(images)
        size = (images.shape[2], images.shape[3])
        rows = torch.arange(len(images), device=images.device)
        with torch.no_grad():
            step = network.first_step(images)
        logits, probabilities, values = [step.logits], [], []
        memory = None
        for _ in range(network.num_exits - 1):
            mean, value, memory = network.propose(step.features, memory)
            action = mean.detach().float()
            if self.training:
                action = action + std * torch.randn_like(action)
            probabilities.append(log_probability(action, mean.float(), std))
            values.append(value)
            with torch.no_grad():
                # Of an action outside of the image, the nearest place in it.
                top_left = places(action, size, network.patch_size)
                step = network.next_step(images, rows, top_left, step.seen)
            logits.append(step.logits)
        return Rollout(torch.stack(logits), torch.stack(probabilities), torch.stack(values))


def policy_loss(rollout: Rollout, labels: Tensor, config: PPOConfig) -> Tensor:
    """Eq. (8) for sequences of images with labels (B,) int64."""
    probability = rollout.logits.float().softmax(dim=-1)  # (T, B, n)
    true = probability.gather(2, labels.expand(len(probability), -1)[:, :, None])[:, :, 0]
    returns = normalised(discounted_returns(rewards_of(true), config.gamma))
    return ppo_loss(
        rollout.log_probability,
        rollout.log_probability.detach(),
        rollout.values.float(),
        returns,
        entropy(config.std),
        config,
    )


class _GFNetTask(Task):
    """What the stages have in common: log.csv has the top-1 of every exit."""

    #: Of the backbones' own last layers, not all classify in GFNet.
    finds_unused = True

    def __init__(
        self,
        name: str,
        learner: SequenceLearner | PolicyLearner,
        config: StageConfig,
        data: TaskData,
        preprocessing: Preprocessing,
        num_classes: int,
    ) -> None:
        super().__init__(name, learner, config, data, preprocessing, num_classes)
        exits = range(1, learner.network.num_exits + 1)
        self.measure_names = tuple(f"top1_exit{t}" for t in exits)

    def _logits(self, output: Any) -> Tensor:
        """(T, B, n) of the exits."""
        raise NotImplementedError

    def measures(self, output: Any, labels: Tensor) -> Tensor:
        """(T,) right answers of each exit."""
        right: Tensor = self._logits(output).argmax(2) == labels
        return right.sum(1).double()

    def count_correct(self, output: Any, labels: Tensor) -> tuple[Tensor, int]:
        """Over all exits."""
        logits = self._logits(output)
        return (logits.argmax(2) == labels).sum(), logits.shape[0] * len(labels)

    def count_correct_in_training(self, output: Any, labels: Tensor) -> tuple[Tensor, int]:
        """Over all exits."""
        return _GFNetTask.count_correct(self, output, labels)


class SequenceTask(_GFNetTask):
    """Stages I and III. The epoch that is kept is the best one on average over the exits.

    Args:
        name, config, data, preprocessing, num_classes: see `Task`; `config.lr` is that of the
            classifier and the heads.
        learner: what is trained.
        encoder_lr: learning rate of the encoders, which follows the same schedule.
        regularisation: lambda of Eq. (3).
    """

    def __init__(
        self,
        name: str,
        learner: SequenceLearner,
        config: StageConfig,
        data: TaskData,
        preprocessing: Preprocessing,
        num_classes: int,
        *,
        encoder_lr: float,
        regularisation: float,
    ) -> None:
        super().__init__(name, learner, config, data, preprocessing, num_classes)
        self._network = learner.network
        self._encoder_rate = encoder_lr / config.lr
        self._regularisation = regularisation

    def parameter_groups(self) -> Sequence[ParameterGroup]:
        """The encoders at their own rate."""
        network = self._network
        return [
            ParameterGroup(network.classifier),
            ParameterGroup(network.heads),
            ParameterGroup(network.glance, self._encoder_rate),
            ParameterGroup(network.focus, self._encoder_rate),
        ]

    def loss(self, output: Any, target: Tensor, training: bool) -> Tensor:
        """Eq. (3) in training, Eq. (1) in validation."""
        if not training:
            return sequence_loss(output, target, 0.0)
        return sequence_loss(output, target, self._regularisation, self.config.label_smoothing)

    def _logits(self, output: Any) -> Tensor:
        logits: Tensor = output[0]
        return logits


class PolicyTask(_GFNetTask):
    """Stage II. The epoch that is kept is the one with the best last exit (appendix A.2)."""

    def __init__(
        self,
        name: str,
        learner: PolicyLearner,
        config: StageConfig,
        data: TaskData,
        preprocessing: Preprocessing,
        num_classes: int,
    ) -> None:
        super().__init__(name, learner, config, data, preprocessing, num_classes)
        self._ppo = learner.config

    def loss(self, output: Any, target: Tensor, training: bool) -> Tensor:
        """Eq. (8) in training; in validation the cross-entropy of the last exit."""
        if training:
            return policy_loss(output, target, self._ppo)
        return functional.cross_entropy(output.logits[-1].float(), target)

    def count_correct(self, output: Any, labels: Tensor) -> tuple[Tensor, int]:
        """At the last exit."""
        return (output.logits[-1].argmax(1) == labels).sum(), len(labels)

    def _logits(self, output: Any) -> Tensor:
        logits: Tensor = output.logits
        return logits

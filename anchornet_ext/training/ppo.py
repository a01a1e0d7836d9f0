"""Proximal policy optimisation as GFNet uses it (appendix A.2; Schulman et al., 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PPOConfig:
    """The hyper-parameters of appendix A.2.

    Attributes:
        gamma: discount of later rewards, within [0, 1].
        clip: epsilon of Eq. (7), positive.
        value_weight: c1 of Eq. (8).
        entropy_weight: c2 of Eq. (8). With a fixed spread of the actions, as in the paper, the
            entropy is a constant and moves nothing; it is in the loss all the same.
        std: of the actions, in shares of the room a patch has.

    Raises:
        ValueError: a value out of its range.
    """

    gamma: float = 0.7
    clip: float = 0.2
    value_weight: float = 0.5
    entropy_weight: float = 0.01
    std: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma must be within [0, 1], got {self.gamma}")
        for name in ("clip", "std"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("value_weight", "entropy_weight"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")


def rewards_of(probability: Tensor) -> Tensor:
    """(T - 1, B) rewards: by how much each patch raised the true class's probability (T, B)."""
    return probability[1:] - probability[:-1]


def discounted_returns(rewards: Tensor, gamma: float) -> Tensor:
    """(S, B): r_t + gamma r_{t+1} + gamma^2 r_{t+2} + ... for each of S steps (Eq. (6))."""
    total = torch.zeros_like(rewards[0])
    returns = []
    for reward in reversed(rewards):
        total = reward + gamma * total
        returns.append(total)
    return torch.stack(returns[::-1])


def normalised(returns: Tensor) -> Tensor:
    """Mean 0 and standard deviation 1 over all steps and images, as the released code does."""
    deviation = returns.std(correction=0)
    return (returns - returns.mean()) / (deviation + 1e-5)


def ppo_loss(
    log_probability: Tensor,
    old_log_probability: Tensor,
    values: Tensor,
    returns: Tensor,
    entropy: Tensor | float,
    config: PPOConfig,
) -> Tensor:
    """The negative of Eq. (8), a mean over steps and images.

    Args:
        log_probability: (S, B) of the actions taken, under the policy that is trained.
        old_log_probability: (S, B), under the policy that took them; no gradient flows through it.
        values: (S, B), what the critic expected.
        returns: (S, B), what came (`discounted_returns`, `normalised`).
        entropy: of the policy, (S, B) or one number.
        config: see `PPOConfig`.
    """
    ratio = (log_probability - old_log_probability.detach()).exp()
    advantage = returns - values.detach()
    clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
    surrogate = torch.minimum(ratio * advantage, clipped * advantage)  # Eq. (7)
    value_loss = (values - returns).square()
    bonus = config.entropy_weight * entropy
    return (-surrogate + config.value_weight * value_loss - bonus).mean()

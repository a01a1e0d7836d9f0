"""PPO: returns, the clipped objective and its gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anchornet_ext.training.ppo import (
    PPOConfig,
    discounted_returns,
    normalised,
    ppo_loss,
    rewards_of,
)

shares = st.floats(0, 1)


@given(
    st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=1, max_size=6),
    shares,
)
def test_returns(rewards: list[list[float]], gamma: float) -> None:
    found = discounted_returns(torch.tensor(rewards, dtype=torch.float64), gamma)
    for t in range(len(rewards)):
        for image in range(3):
            wanted = sum(gamma ** (s - t) * rewards[s][image] for s in range(t, len(rewards)))
            assert found[t, image].item() == pytest.approx(wanted, abs=1e-9)


def test_rewards_add_up_to_what_was_gained() -> None:
    probability = torch.rand(4, 5)
    rewards = rewards_of(probability)
    torch.testing.assert_close(rewards.sum(dim=0), probability[-1] - probability[0])


def test_normalised() -> None:
    returns = normalised(torch.rand(3, 50, dtype=torch.float64) * 7 + 3)
    assert returns.mean().item() == pytest.approx(0, abs=1e-6)
    assert returns.std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert torch.equal(normalised(torch.full((2, 2), 3.0)), torch.zeros(2, 2))


def test_the_first_update_is_the_policy_gradient() -> None:
    """Where the policy has not changed yet, the gradient is that of log pi * advantage."""
    log_probability = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    values = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    returns = torch.randn(3, 4, dtype=torch.float64)
    config = PPOConfig()
    loss = ppo_loss(log_probability, log_probability.detach(), values, returns, 0.3, config)
    loss.backward()
    advantage = returns - values.detach()
    torch.testing.assert_close(log_probability.grad, -advantage / 12)
    torch.testing.assert_close(values.grad, 0.5 * 2 * (values.detach() - returns) / 12)


@given(st.floats(-1, 1), st.floats(-2, 2).filter(lambda a: abs(a) > 1e-3))
def test_clipping_takes_the_worse(log_ratio: float, advantage: float) -> None:
    """Eq. (7), and that a step which went too far in the good direction is not pushed further."""
    new = torch.tensor([[log_ratio]], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    config = PPOConfig(value_weight=0, entropy_weight=0)
    loss = ppo_loss(new, zero, zero, zero + advantage, 0.0, config)
    ratio = new.exp().item()
    wanted = min(ratio * advantage, min(max(ratio, 0.8), 1.2) * advantage)
    assert -loss.item() == pytest.approx(wanted)
    loss.backward()
    too_far = (advantage > 0 and ratio > 1.2) or (advantage < 0 and ratio < 0.8)
    assert new.grad is not None
    assert (new.grad.item() == 0) == too_far


@pytest.mark.parametrize(
    ("option", "value"),
    [("gamma", 1.5), ("clip", 0), ("std", 0), ("value_weight", -1), ("entropy_weight", -1)],
)
def test_bad_config(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{option} must be .* got {value}"):
        PPOConfig(**{option: value})

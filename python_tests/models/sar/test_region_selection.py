"""The masks: how they are sampled in training and decided at test."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchornet_ext.models.sar import build_sar, decide, sample
from anchornet_ext.training.sar import SARLearner


def logits_with(gap: float, count: int = 20000) -> torch.Tensor:
    """Logits (count, 2, 1, 1, 1) in which "refine" is ahead by `gap`."""
    logits = torch.zeros(count, 2, 1, 1, 1)
    logits[:, 1] = gap
    return logits


@settings(deadline=None, max_examples=20)
@given(gap=st.floats(-3, 3), temperature=st.floats(0.01, 1), seed=st.integers(0, 1000))
def test_a_cell_is_sampled_with_the_probability_that_its_logits_say(gap, temperature, seed):
    generator = torch.Generator().manual_seed(seed)
    masks = sample(logits_with(gap), temperature, generator)
    assert set(masks.unique().tolist()) <= {0.0, 1.0}
    p = torch.sigmoid(torch.tensor(gap)).item()
    assert masks.mean().item() == pytest.approx(p, abs=5 * (p * (1 - p) / 20000) ** 0.5)


def test_the_gradient_is_the_softmax():
    """Eq. 9: of the sigmoid of the difference of the noisy logits over the temperature."""
    logits = torch.randn(4, 2, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    generator = torch.Generator().manual_seed(1)
    sample(logits, 0.5, generator).sum().backward()
    generator.manual_seed(1)
    noise = -torch.empty_like(logits).exponential_(generator=generator).log()
    relaxed = torch.softmax((logits.detach() + noise) / 0.5, 1)
    slope = relaxed[:, 0] * relaxed[:, 1] / 0.5
    assert torch.allclose(logits.grad[:, 1], slope)
    assert torch.allclose(logits.grad[:, 0], -slope)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_masks_keep_the_dtype_and_are_exactly_0_or_1(dtype):
    masks = sample(torch.randn(3, 50, 2, 4, 7, 7).to(dtype), 0.01)
    assert masks.dtype == dtype
    assert set(masks.unique().tolist()) == {0.0, 1.0}


def test_decisions_are_the_larger_logit_and_a_tie_is_not_refined():
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 2.0]])[:, :, None, None, None]
    assert decide(logits).flatten().tolist() == [True, False, False]


@pytest.mark.parametrize("temperature", [0, -1, float("nan")])
def test_the_temperature_must_be_positive(temperature):
    with pytest.raises(ValueError, match="temperature"):
        sample(logits_with(0), temperature)


def test_at_first_every_region_is_selected():
    network = build_sar("resnet20", 10).eval()
    with torch.no_grad():
        _, masks = network.run(torch.randn(4, 3, 32, 32), decide)
    assert [tuple(mask.shape) for mask in masks] == [(2, 4, 2, 4, 4)] * 3
    assert all(mask.all() for mask in masks)


def test_in_training_the_rates_have_gradients_and_begin_near_one():
    network = build_sar("resnet20", 10, groups=4)
    rates = SARLearner(network)(torch.randn(8, 3, 32, 32)).rates
    assert rates.shape == (6, 8)
    expected = torch.sigmoid(torch.tensor(3.0)).item()
    assert rates.mean().item() == pytest.approx(expected, abs=0.05)
    rates.sum().backward()
    gradients = [m.decide.bias.grad for m in network.modules() if hasattr(m, "decide")]
    assert len(gradients) == 6
    assert all(g is not None and g.abs().sum() > 0 for g in gradients)

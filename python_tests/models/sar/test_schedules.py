"""The schedules of SAR's training and its loss."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anchornet_ext.models.sar import refinement_loss, target_rate, temperature

fractions = st.floats(0, 1)


def test_temperature_goes_from_1_to_a_hundredth():
    assert temperature(0) == 1
    assert temperature(1) == 0.01
    assert temperature(0.5) == pytest.approx(0.1)


@given(fractions, fractions)
def test_temperature_falls_by_the_same_factor_in_equal_times(a, b):
    middle = temperature((a + b) / 2)
    assert middle**2 == pytest.approx(temperature(a) * temperature(b))
    assert (temperature(a) - temperature(b)) * (a - b) <= 0


def test_target_goes_down_in_three_steps_until_the_middle():
    assert [target_rate(p / 12, 0.4) for p in range(13)] == pytest.approx(
        [1, 1, 0.8, 0.8, 0.6, 0.6, *[0.4] * 7]
    )


@given(fractions, fractions, fractions)
def test_target_never_rises_and_ends_exactly_where_asked(a, b, target):
    low, high = sorted((a, b))
    assert 1 >= target_rate(low, target) >= target_rate(high, target) >= target
    assert target_rate(0.5 + a / 2, target) == target
    assert target_rate(0, target) == 1


@pytest.mark.parametrize("epochs", [2, 4, 6, 7, 10, 90, 100, 200, 300])
def test_target_is_reached_at_the_first_epoch_of_the_second_half(epochs):
    reached = next(e for e in range(epochs + 1) if target_rate(e / epochs, 0.5) == 0.5)
    assert reached == math.ceil(epochs / 2)


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_what_is_no_fraction_is_refused(bad):
    for call in (temperature, lambda p: target_rate(p, 0.5), lambda t: target_rate(0.5, t)):
        with pytest.raises(ValueError, match="must be in"):
            call(bad)
    with pytest.raises(ValueError, match="must be in"):
        refinement_loss([torch.ones(2)], bad)


def test_temperatures_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        temperature(0.5, 1.0, 0.0)


def test_loss_is_of_the_batch_and_not_of_each_image():
    """Eq. 10, not Eq. 11: images may differ as long as their mean is right."""
    rates = [torch.tensor([0.2, 0.8]), torch.tensor([0.4, 0.2])]
    assert refinement_loss(rates, 0.5).item() == pytest.approx((0 + 0.2**2) / 2)


def test_loss_pulls_the_rates_towards_the_target():
    rates = torch.tensor([0.9, 0.7], requires_grad=True)
    refinement_loss([rates], 0.5).backward()
    assert rates.grad is not None
    assert torch.allclose(rates.grad, torch.full((2,), 2 * 0.3 / 2))


def test_loss_needs_a_block():
    with pytest.raises(ValueError, match="at least one block"):
        refinement_loss([], 0.5)

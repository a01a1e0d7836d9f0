"""fit_thresholds and pareto against their specification and on tables small enough to enumerate."""

from __future__ import annotations

from typing import Any, NamedTuple

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from anchornet_ext.policy.fitting import METHODS, Fit, Method, fit_thresholds, pareto
from anchornet_ext.reference import exit_policy as reference


class Case(NamedTuple):
    confidence: np.ndarray
    correct: np.ndarray
    cost: np.ndarray


@st.composite
def tables(draw: st.DrawFn, max_images: int = 40, max_exits: int = 5) -> Case:
    """Tables with ties, exits that get worse, and confidences of 0 and 1."""
    images = draw(st.integers(1, max_images))
    exits = draw(st.integers(1, max_exits))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([2, 5, 1000]))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    confidence = (random.integers(0, levels + 1, (images, exits)) / levels).astype(dtype)
    correct = random.random((images, exits)) < draw(st.sampled_from([0.2, 0.7])) + confidence / 3
    cost = np.cumsum(random.choice([0.5, 1, 2.25], exits))
    return Case(confidence, correct, cost)


def some_budget(case: Case, part: float) -> float:
    return float(case.cost[0] + part * (case.cost[-1] - case.cost[0]))


def score(case: Case, fit: Fit) -> reference.Evaluation:
    return reference.evaluate(*case, fit.thresholds)


parts = st.floats(0, 1.2)
methods = pytest.mark.parametrize("method", METHODS)


@methods
@settings(deadline=None, max_examples=60)
@given(case=tables(), part=parts)
def test_is_within_the_budget_and_says_what_it_does(case: Case, part: float, method: Any) -> None:
    budget = some_budget(case, part)
    fit = fit_thresholds(*case, budget, method=method)
    expected = score(case, fit)
    assert fit.cost == expected.cost <= budget
    assert fit.accuracy == expected.correct / len(case.confidence)
    assert fit.thresholds.shape == (len(case.cost) - 1,)
    assert fit.method == method


@settings(deadline=None, max_examples=60)
@given(case=tables(), part=parts)
def test_geometric_equals_the_reference(case: Case, part: float) -> None:
    budget = some_budget(case, part)
    fit = fit_thresholds(*case, budget, method="geometric")
    np.testing.assert_array_equal(fit.thresholds, reference.fit_geometric(*case, budget))


@methods
@settings(deadline=None, max_examples=40)
@given(case=tables(), part=parts, seed=st.integers(0, 2**32 - 1))
def test_rows_may_come_in_any_order(case: Case, part: float, seed: int, method: Method) -> None:
    order = np.random.default_rng(seed).permutation(len(case.confidence))
    budget = some_budget(case, part)
    fit = fit_thresholds(*case, budget, method=method)
    other = fit_thresholds(
        case.confidence[order], case.correct[order], case.cost, budget, method=method
    )
    np.testing.assert_array_equal(fit.thresholds, other.thresholds)
    assert (fit.accuracy, fit.cost) == (other.accuracy, other.cost)


@methods
@settings(deadline=None, max_examples=30)
@given(case=tables(), num_points=st.integers(1, 12))
def test_the_curve_rises(case: Case, num_points: int, method: Method) -> None:
    curve = pareto(*case, num_points=num_points, method=method)
    assert curve.thresholds.shape == (num_points, len(case.cost) - 1)
    assert (np.diff(curve.cost) >= 0).all()
    assert (np.diff(curve.accuracy) >= 0).all()
    assert (curve.cost <= curve.budget).all()

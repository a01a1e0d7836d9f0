"""fit_thresholds and pareto against their specification and on tables small enough to enumerate."""

from __future__ import annotations

import signal
import threading
from types import FrameType
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


def make_table(
    seed: int, images: int, exits: int, levels: int = 1000, dtype: Any = np.float32
) -> Case:
    """A table with ties, exits that get worse, and confidences of 0 and 1."""
    random = np.random.default_rng(seed)
    confidence = (random.integers(0, levels + 1, (images, exits)) / levels).astype(dtype)
    correct = random.random((images, exits)) < random.choice([0.2, 0.6]) + confidence / 3
    return Case(confidence, correct, np.cumsum(random.choice([0.5, 1, 2.25], exits)))


@st.composite
def tables(draw: st.DrawFn, min_images: int = 1, max_images: int = 40, max_exits: int = 5) -> Case:
    return make_table(
        seed=draw(st.integers(0, 2**32 - 1)),
        images=draw(st.integers(min_images, max_images)),
        exits=draw(st.integers(1, max_exits)),
        levels=draw(st.sampled_from([2, 5, 1000])),
        dtype=draw(st.sampled_from([np.float32, np.float64])),
    )


def realistic_table(images: int, seed: int = 0, exits: int = 4) -> Case:
    """Confidences that grow from exit to exit and say how likely the answer is right."""
    random = np.random.default_rng(seed)
    difficulty = random.normal(0, 2, images)
    evidence = 1 + 1.5 * np.log1p(np.arange(exits)) - difficulty[:, None]
    evidence = evidence + random.normal(0, 0.7, (images, exits))
    confidence = 1 / (1 + np.exp(-evidence))
    correct = random.random(images)[:, None] < confidence
    return Case(confidence.astype(np.float32), correct, np.arange(1.0, exits + 1))


def some_budget(case: Case, part: float) -> float:
    return float(case.cost[0] + part * (case.cost[-1] - case.cost[0]))


def score(case: Case, fit: Fit) -> reference.Evaluation:
    return reference.evaluate(*case, fit.thresholds)


parts = st.floats(0, 1.2)
methods = pytest.mark.parametrize("method", METHODS)


@methods
@settings(deadline=None, max_examples=60)
@given(case=tables(), part=parts)
def test_is_within_the_budget_and_says_what_it_does(
    case: Case, part: float, method: Method
) -> None:
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


@settings(deadline=None, max_examples=40)
@given(case=tables(min_images=17, max_images=60), part=parts)
def test_search_equals_the_reference(case: Case, part: float) -> None:
    budget = some_budget(case, part)
    fit = fit_thresholds(*case, budget)
    np.testing.assert_array_equal(fit.thresholds, reference.fit_search(*case, budget))


@pytest.mark.parametrize("part", [0.02, 0.2, 0.5])
def test_search_equals_the_reference_on_a_realistic_table(part: float) -> None:
    case = realistic_table(300)
    budget = some_budget(case, part)
    fit = fit_thresholds(*case, budget)
    np.testing.assert_array_equal(fit.thresholds, reference.fit_search(*case, budget))
    start = reference.start_of_search(*case, budget)
    assert (fit.thresholds != start).any()  # the ascent had something to do


@settings(deadline=None, max_examples=50)
@given(case=tables(max_images=8, max_exits=3), part=parts)
def test_search_is_the_best_of_all_policies_on_tiny_tables(case: Case, part: float) -> None:
    budget = some_budget(case, part)
    fit = fit_thresholds(*case, budget)
    np.testing.assert_array_equal(fit.thresholds, reference.best_within(*case, budget))


@settings(deadline=None, max_examples=50)
@given(case=tables(max_images=8, max_exits=3), wanted=st.integers(0, 8))
def test_an_accuracy_is_reached_at_the_lowest_cost_on_tiny_tables(case: Case, wanted: int) -> None:
    images = len(case.confidence)
    wanted = min(wanted, images)
    expected = reference.cheapest_reaching(*case, wanted)
    if expected is None:
        with pytest.raises(ValueError, match="out of reach") as caught:
            fit_thresholds(*case, accuracy=wanted / images)
        reachable = float(str(caught.value).split()[-1])
        best = max(
            reference.evaluate(*case, policy).correct
            for policy in reference.all_policies(case.confidence)
        )
        assert reachable == pytest.approx(best / images, rel=1e-5)
    else:
        fit = fit_thresholds(*case, accuracy=wanted / images)
        np.testing.assert_array_equal(fit.thresholds, expected)


@settings(deadline=None, max_examples=30)
@given(case=tables(), wanted=st.integers(0, 40))
def test_geometric_reaches_an_accuracy_as_the_reference_does(case: Case, wanted: int) -> None:
    wanted = min(wanted, len(case.confidence))
    accuracy = wanted / len(case.confidence)
    expected = reference.reach_geometric(*case, wanted)
    if expected is None:
        with pytest.raises(ValueError, match="out of reach"):
            fit_thresholds(*case, accuracy=accuracy, method="geometric")
    else:
        fit = fit_thresholds(*case, accuracy=accuracy, method="geometric")
        np.testing.assert_array_equal(fit.thresholds, expected)


@methods
@pytest.mark.parametrize("accuracy", [0.7, 0.75, 0.8])
def test_a_reached_accuracy_is_cheap(accuracy: float, method: Method) -> None:
    case = realistic_table(3000)
    fit = fit_thresholds(*case, accuracy=accuracy, method=method)
    assert fit.accuracy >= accuracy
    # a budget a little below that does not buy it
    assert fit_thresholds(*case, fit.cost - 0.05, method=method).accuracy < accuracy


@methods
def test_the_accuracy_of_a_curve_can_be_asked_for(method: Method) -> None:
    case = realistic_table(4000)
    curve = pareto(*case, num_points=15, method=method)
    fit = fit_thresholds(*case, accuracy=float(curve.accuracy[5]), method=method)
    assert fit.accuracy >= curve.accuracy[5]
    assert fit.cost <= curve.cost[5] * 1.03


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


def test_rows_of_a_large_table_may_come_in_any_order() -> None:
    case = realistic_table(5000)
    order = np.random.default_rng(1).permutation(5000)
    curve = pareto(*case, num_points=8)
    other = pareto(case.confidence[order], case.correct[order], case.cost, num_points=8)
    for a, b in zip(curve, other, strict=True):
        np.testing.assert_array_equal(a, b)


@methods
@settings(deadline=None, max_examples=30)
@given(case=tables(), num_points=st.integers(1, 12))
def test_the_curve_rises(case: Case, num_points: int, method: Method) -> None:
    curve = pareto(*case, num_points=num_points, method=method)
    assert curve.thresholds.shape == (num_points, len(case.cost) - 1)
    assert (np.diff(curve.cost) >= 0).all()
    assert (np.diff(curve.accuracy) >= 0).all()
    assert (curve.cost <= curve.budget).all()
    for thresholds, accuracy, cost in zip(*curve[:3], strict=True):
        expected = reference.evaluate(*case, thresholds)
        assert (expected.correct / len(case.confidence), expected.cost) == (accuracy, cost)


@methods
def test_a_curve_of_one_budget_is_a_fit(method: Method) -> None:
    case = realistic_table(500)
    curve = pareto(*case, budgets=[1.7], method=method)
    fit = fit_thresholds(*case, 1.7, method=method)
    np.testing.assert_array_equal(curve.thresholds[0], fit.thresholds)
    np.testing.assert_array_equal(curve.budget, [1.7])


def test_budgets_are_sorted() -> None:
    case = realistic_table(300)
    np.testing.assert_array_equal(pareto(*case, budgets=[2, 1, 1.5]).budget, [1, 1.5, 2])


@methods
@settings(deadline=None, max_examples=20)
@given(case=tables(), part=parts, scale=st.sampled_from([2.0**-20, 4.0, 2.0**30]))
def test_the_unit_of_the_cost_does_not_matter(
    case: Case, part: float, scale: float, method: Method
) -> None:
    """Scales that are powers of two, so that nothing is rounded differently."""
    budget = some_budget(case, part)
    fit = fit_thresholds(*case, budget, method=method)
    scaled = fit_thresholds(*case[:2], case.cost * scale, budget * scale, method=method)
    np.testing.assert_array_equal(fit.thresholds, scaled.thresholds)


@settings(deadline=None, max_examples=40)
@given(case=tables(), seed=st.integers(0, 2**32 - 1))
def test_the_solver_evaluates_as_the_reference(case: Case, seed: int) -> None:
    from anchornet_ext import _C

    random = np.random.default_rng(seed)
    thresholds = random.choice([-1.0, 0.0, 0.2, 0.4, 0.5, 1.0], len(case.cost) - 1)
    solver = _C.ThresholdSolver(
        case.confidence.astype(np.float64), case.correct.astype(np.uint8), case.cost, "search"
    )
    expected = reference.evaluate(*case, thresholds)
    assert solver.evaluate(thresholds) == (expected.correct, expected.cost)


def test_thresholds_also_separate_when_rounded_to_float32() -> None:
    """The running system compares in float32: a midpoint must not be rounded up to a confidence."""
    below = np.float32(0.7)
    above = np.nextafter(below, np.float32(1))
    confidence = np.array([[below, 0.5], [above, 0.5]], np.float32)
    correct = np.array([[0, 1], [1, 0]], np.bool_)
    fit = fit_thresholds(confidence, correct, [1, 3], 2.0)
    assert fit.accuracy == 1
    leaves = confidence[:, 0] > np.float32(fit.thresholds[0])
    np.testing.assert_array_equal(leaves, [False, True])


def test_float64_confidences_that_float32_cannot_tell_apart() -> None:
    below = 0.7
    above = np.nextafter(below, 1)
    confidence = np.array([[below, 0.5], [above, 0.5]])
    correct = np.array([[0, 1], [1, 0]], np.bool_)
    fit = fit_thresholds(confidence, correct, [1, 3], 2.0)
    assert fit.accuracy == 1
    np.testing.assert_array_equal(confidence[:, 0] > fit.thresholds[0], [False, True])


@methods
def test_other_layouts_and_dtypes_give_the_same(method: Method) -> None:
    case = realistic_table(200)
    expected = fit_thresholds(*case, 1.6, method=method)
    wide = np.full((200, 9), np.nan, np.float32)
    wide[:, 1::2] = case.confidence
    for confidence in (
        np.asfortranarray(case.confidence),
        wide[:, 1::2],
        case.confidence.astype(np.float64),
        case.confidence.astype(">f4"),
    ):
        for correct in (
            case.correct.astype(np.uint8),
            case.correct.astype(np.int64),
            np.asfortranarray(case.correct),
        ):
            fit = fit_thresholds(confidence, correct, list(case.cost), 1.6, method=method)
            np.testing.assert_array_equal(fit.thresholds, expected.thresholds)
    read_only = case.confidence.copy()
    read_only.flags.writeable = False
    fit = fit_thresholds(read_only, case.correct, case.cost, np.float32(1.6), method=method)
    assert fit.accuracy == expected.accuracy


@methods
def test_one_exit_and_one_image(method: Method) -> None:
    fit = fit_thresholds([[0.5]] * np.ones((3, 1)), np.eye(3, 1, dtype=bool), [2], 5, method=method)
    assert fit.thresholds.shape == (0,)
    assert (fit.accuracy, fit.cost) == (1 / 3, 2.0)
    one = fit_thresholds(np.ones((1, 2)), np.array([[0, 1]]), [1, 2], 1.0, method=method)
    assert (one.accuracy, one.cost) == (0.0, 1.0)


def test_nobody_goes_where_it_does_not_pay() -> None:
    """An exit that is worse than the one before it is not used, however large the budget."""
    fit_on, held_out = (
        realistic_table(1500, seed=1, exits=3),
        realistic_table(4000, seed=2, exits=3),
    )
    random = np.random.default_rng(3)
    for case in (fit_on, held_out):
        case.correct[:, 2] = case.correct[:, 1] & (random.random(len(case.correct)) < 0.9)
    fit = fit_thresholds(*fit_on, 3.0)
    seen = reference.evaluate(*held_out, fit.thresholds)
    assert (seen.exit_index == 2).mean() < 0.02
    field = fit_thresholds(*fit_on, 3.0, method="geometric")
    assert seen.correct > reference.evaluate(*held_out, field.thresholds).correct


@pytest.mark.parametrize("budget", [2.0, 2.05, 2.6, 3.0])
def test_nothing_is_spent_on_what_buys_nothing(budget: float) -> None:
    """Sure images are right at once, the others at the second exit: more than 2 is of no use."""
    sure = np.arange(200) % 2 == 0
    first = np.where(sure, 0.8, 0.2) + 0.1 * np.random.default_rng(0).random(200)
    confidence = np.stack([first, np.full(200, 0.95)], axis=1)
    correct = np.stack([sure, np.ones(200, np.bool_)], axis=1)
    fit = fit_thresholds(confidence, correct, [1, 3], budget)
    assert fit.accuracy == 1
    assert fit.cost <= 2.1
    assert pareto(confidence, correct, [1, 3], num_points=6).cost[-1] == pytest.approx(2, abs=0.05)


def test_the_search_is_no_worse_than_the_geometric_rule_on_images_it_has_not_seen() -> None:
    gains = []
    for seed in range(6):
        fit_on, held_out = realistic_table(2000, 10 + seed), realistic_table(8000, 100 + seed)
        for budget in (1.2, 1.5, 2.0):
            curve = {}
            for method in METHODS:
                fits = [
                    fit_thresholds(*fit_on, budget + shift, method=method)
                    for shift in (-0.1, 0.0, 0.1)
                ]
                seen = [reference.evaluate(*held_out, fit.thresholds) for fit in fits]
                curve[method] = np.interp(
                    budget, [s.cost for s in seen], [s.correct / 8000 for s in seen]
                )
            gains.append(curve["search"] - curve["geometric"])
    assert np.mean(gains) > -0.0002
    assert min(gains) > -0.006


def test_ctrl_c_ends_a_long_curve() -> None:
    case = realistic_table(20000)

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(KeyboardInterrupt):
            pareto(*case, num_points=5000)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_other_threads_run_meanwhile() -> None:
    case = realistic_table(20000)
    search = threading.Thread(target=pareto, args=case, kwargs={"num_points": 10})
    search.start()
    turns = 0
    while search.is_alive():
        search.join(0.001)
        turns += 1
    assert turns > 20


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"confidence": np.ones((4, 2), np.float16)}, TypeError, "float16"),
        ({"confidence": np.ones(4)}, ValueError, r"\(4,\)"),
        ({"confidence": np.ones((0, 2))}, ValueError, "no image"),
        ({"confidence": np.ones((4, 0))}, ValueError, r"\(4, 0\)"),
        ({"confidence": np.full((4, 2), np.nan)}, ValueError, "NaN at image 0, exit 0"),
        ({"confidence": np.full((4, 2), 1.5)}, ValueError, r"1\.5 at image 0, exit 0"),
        ({"confidence": np.full((4, 2), -0.1)}, ValueError, r"-0\.1 at image 0"),
        ({"correct": np.ones((4, 3), bool)}, ValueError, r"\(4, 3\)"),
        ({"correct": np.ones((4, 2), np.float32)}, TypeError, "float32"),
        ({"correct": np.full((4, 2), 2)}, ValueError, "got 2 at image 0"),
        ({"cost": [1.0]}, ValueError, r"\(1,\)"),
        ({"cost": [2.0, 1.0]}, ValueError, r"\[2, 1\]"),
        ({"cost": [1.0, 1.0]}, ValueError, r"increasing, got \[1, 1\]"),
        ({"cost": [1.0, np.inf]}, ValueError, "inf"),
        ({"cost": [np.nan, 1.0]}, ValueError, "nan"),
        ({"cost": [-1.0, 1.0]}, ValueError, "-1"),
        ({"cost": ["a", "b"]}, TypeError, "cost"),
        ({"budget": 0.5}, ValueError, "budget 0.5 is below the cost of the cheapest exit, 1"),
        ({"budget": float("nan")}, ValueError, "budget is NaN"),
        ({"budget": "1G"}, TypeError, "'1G'"),
        ({"budget": None}, TypeError, "exactly one"),
        ({"accuracy": 0.5}, TypeError, "exactly one"),
        ({"budget": None, "accuracy": 1.5}, ValueError, r"1\.5"),
        ({"budget": None, "accuracy": float("nan")}, ValueError, "nan"),
        ({"budget": None, "accuracy": "high"}, TypeError, "'high'"),
        ({"method": "guess"}, ValueError, "'guess'"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments: dict[str, Any] = {
        "confidence": np.full((4, 2), 0.5),
        "correct": np.ones((4, 2), np.bool_),
        "cost": [1.0, 2.0],
        "budget": 1.5,
    }
    with pytest.raises(error, match=message):
        fit_thresholds(**(arguments | change))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_points": 0}, ValueError, "0"),
        ({"num_points": 2.5}, TypeError, r"2\.5"),
        ({"num_points": 3, "budgets": [1]}, TypeError, "both"),
        ({"budgets": []}, ValueError, r"\(0,\)"),
        ({"budgets": [1.5, 0.5]}, ValueError, r"budget 0\.5"),
        ({"method": "guess"}, ValueError, "'guess'"),
    ],
)
def test_bad_curves_are_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pareto(np.full((4, 2), 0.5), np.ones((4, 2), np.bool_), [1.0, 2.0], **change)


def test_the_solver_itself_refuses_arrays_that_do_not_fit_together() -> None:
    from anchornet_ext import _C

    good = np.ones((3, 2)), np.ones((3, 2), np.uint8), np.array([1.0, 2.0])
    with pytest.raises(ValueError, match="expected confidence"):
        _C.ThresholdSolver(good[0], good[1][:2], good[2], "search")
    with pytest.raises(ValueError, match="'guess'"):
        _C.ThresholdSolver(*good, "guess")
    with pytest.raises(TypeError):
        _C.ThresholdSolver(good[0].astype(np.float32), *good[1:], "search")
    with pytest.raises(ValueError, match="one threshold"):
        _C.ThresholdSolver(*good, "search").evaluate([0.5, 0.5])
    with pytest.raises(ValueError, match="confidence has NaN"):
        _C.ThresholdSolver(np.full((3, 2), np.nan), *good[1:], "search")
    for cost in ([2.0, 1.0], [1.0, np.inf], [np.nan, 1.0]):
        with pytest.raises(ValueError, match="cost must be finite"):
            _C.ThresholdSolver(*good[:2], np.array(cost), "geometric")


@pytest.mark.parametrize("method", ["search", "geometric"])
@pytest.mark.parametrize("budget", [0.5, np.nan, -np.inf])
def test_the_solver_itself_refuses_budgets_that_nothing_meets(method: str, budget: float) -> None:
    from anchornet_ext import _C

    solver = _C.ThresholdSolver(
        np.ones((3, 2)), np.ones((3, 2), np.uint8), np.array([1.0, 2.0]), method
    )
    with pytest.raises(ValueError, match=f"cheapest exit's cost 1.0*, got {budget}"):
        solver.within(budget)
    with pytest.raises(ValueError, match=f"got {budget}"):
        solver.curve([1.5, budget])

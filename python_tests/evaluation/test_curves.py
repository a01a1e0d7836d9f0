"""Curves: nothing is measured on what it was fitted on, and the numbers belong together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from report_cases import curve_of, graded_table, table_of_correct

from anchornet_ext.evaluation import curves
from anchornet_ext.evaluation.curves import (
    anytime,
    compare,
    cost_to_reach,
    cross_fit,
    exit_costs,
    operating_point,
    why_no_curve,
)
from anchornet_ext.policy.exit_policy import ExitPolicy
from anchornet_ext.policy.exit_table import ExitTable
from anchornet_ext.policy.outcome import outcome


def test_anytime_is_the_mean_of_each_exit() -> None:
    table = graded_table(500, 4)
    found = anytime(table, "it")
    assert found.top1.value == pytest.approx(table.correct.mean(axis=0))
    assert found.top5 is not None
    assert table.top5 is not None
    assert found.top5.value == pytest.approx(table.top5.mean(axis=0))
    assert found.gain.value == pytest.approx(np.diff(table.correct.mean(axis=0)))
    assert ((found.top1.low < found.top1.value) & (found.top1.value < found.top1.high)).all()


def test_anytime_of_one_exit_has_no_gain() -> None:
    found = anytime(graded_table(5, 1, top5=None))
    assert found.gain.value.shape == (0,)
    assert found.top5 is None


def fingerprints(confidence: NDArray[np.float32]) -> set[float]:
    return set(confidence[:, 0].tolist())


@pytest.mark.parametrize("method", ["search", "geometric"])
def test_no_image_is_measured_with_thresholds_it_was_fitted_on(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every image has a first confidence of its own, by which the calls can tell images apart."""
    table = graded_table(101, 3)
    assert len(fingerprints(table.confidence)) == 101
    fitted: list[set[float]] = []
    measured: list[set[float]] = []
    fit, apply = curves.pareto, curves.apply_thresholds

    def watched_fit(confidence: NDArray[np.float32], *args: object, **options: object) -> object:
        if "budgets" in options:
            fitted.append(fingerprints(confidence))
        return fit(confidence, *args, **options)  # type: ignore[arg-type]

    def watched_apply(confidence: NDArray[np.float32], limits: object) -> object:
        measured.append(fingerprints(confidence))
        return apply(confidence, limits)  # type: ignore[arg-type]

    monkeypatch.setattr(curves, "pareto", watched_fit)
    monkeypatch.setattr(curves, "apply_thresholds", watched_apply)
    cross_fit(table, method, num_points=3, splits=2)  # type: ignore[arg-type]
    assert len(fitted) == 4  # two halves in each of two splits
    assert len(measured) == 4 * 3
    everything = fingerprints(table.confidence)
    for half, group in enumerate(fitted):
        for seen in measured[3 * half : 3 * half + 3]:
            assert not group & seen
            assert group | seen == everything
    assert fitted[0] != fitted[2], "the second split has the same halves"


@pytest.mark.parametrize("costs", ["macs", "milliseconds", "inputs"])
def test_a_curves_numbers_belong_together(costs: curves.Costs) -> None:
    table = graded_table(400, 4, milliseconds=np.array([2.0, 3.0, 5.0, 9.0]))
    found = cross_fit(table, costs=costs, num_points=7, system="it")
    values = exit_costs(table, costs)
    assert found.share.sum(axis=1) == pytest.approx(np.ones(7))
    assert found.cost == pytest.approx(found.share @ values)
    assert found.inputs == pytest.approx(found.share @ [1, 2, 3, 4])
    assert found.budget[0] == values[0]
    assert (np.diff(found.budget) > 0).all()
    assert found.budget[-1] <= values[-1]
    # The cheapest budget lets every image leave at once.
    assert found.accuracy.value[0] == pytest.approx(table.correct[:, 0].mean())
    # One score for an image, averaged over the budgets; their mean is the area below the curve.
    area = np.trapezoid(found.accuracy.value, found.budget) / np.ptp(found.budget)
    assert found.mean_accuracy == pytest.approx(area, abs=1e-5)
    assert found.image_score.shape == (400,)


def test_budgets_are_kept_within_what_another_half_can_differ() -> None:
    table = graded_table(3000, 4)
    found = cross_fit(table, num_points=10)
    assert (found.cost <= 1.05 * found.budget).all()


def test_confidence_decides_who_goes_on() -> None:
    """Half of the images are sure and right at once, the others only later: for the mean of both
    costs all can be right, where leaving at random would have three quarters."""
    easy = np.arange(200) % 2 == 0
    first = np.where(easy, 0.8, 0.2) + 0.1 * np.random.default_rng(0).random(200)
    confidence = np.stack([first, np.full(200, 0.95)], axis=1).astype(np.float32)
    correct = np.stack([easy, np.ones(200, bool)], axis=1)
    table = ExitTable(confidence, correct, np.array([1e9, 3e9]))
    found = cross_fit(table, num_points=5)
    assert found.cost[-1] == pytest.approx(2e9, rel=0.05)
    assert found.accuracy.value[-1] > 0.93  # a half need not have as many easy ones as the other
    assert found.accuracy.value[0] == pytest.approx(0.5)


def test_the_seed_decides_the_halves() -> None:
    table = graded_table(300, 3)
    one, same, other = (cross_fit(table, num_points=4, seed=seed, splits=1) for seed in (1, 1, 2))
    assert np.array_equal(one.accuracy.value, same.accuracy.value)
    assert np.array_equal(one.image_score, same.image_score)
    assert not np.array_equal(one.accuracy.value, other.accuracy.value)


def test_large_tables_are_fitted_on_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "MOST_FITTED", 30)
    sizes: list[int] = []
    fit = curves.pareto

    def watched(confidence: NDArray[np.float32], *args: object, **options: object) -> object:
        sizes.append(len(confidence))
        return fit(confidence, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(curves, "pareto", watched)
    found = cross_fit(graded_table(200, 3), num_points=3, splits=1)
    assert max(sizes) <= 30
    assert found.num_fitted == 30
    assert found.share.sum(axis=1) == pytest.approx(np.ones(3))  # yet all images are measured


def test_a_first_exit_that_is_never_beaten() -> None:
    correct = np.ones((60, 3), bool)
    correct[:30, 1:] = False
    found = cross_fit(table_of_correct(correct), num_points=4)
    assert np.isfinite(found.mean_accuracy)
    assert found.accuracy.value == pytest.approx(np.ones(4))


@pytest.mark.parametrize(
    ("table", "costs", "reason"),
    [
        (lambda: graded_table(100, 1), "macs", "one exit"),
        (lambda: graded_table(1, 3), "macs", "1 image is too few"),
        (lambda: graded_table(39, 3), "inputs", "39 images are too few"),
        (lambda: graded_table(100, 3, cost=None), "macs", "multiply-adds"),
        (lambda: graded_table(100, 3), "milliseconds", "has not been measured"),
    ],
)
def test_what_cannot_be_fitted_says_why(
    table: Callable[[], ExitTable], costs: curves.Costs, reason: str
) -> None:
    made = table()
    assert reason in str(why_no_curve(made, costs))
    with pytest.raises(ValueError, match=reason):
        cross_fit(made, costs=costs)


def test_arguments_are_checked() -> None:
    table = graded_table(100, 3)
    assert why_no_curve(table) is None
    with pytest.raises(ValueError, match="num_points=1"):
        cross_fit(table, num_points=1)
    with pytest.raises(ValueError, match="splits"):
        cross_fit(table, splits=0)
    with pytest.raises(ValueError, match="'watts'"):
        exit_costs(table, "watts")  # type: ignore[arg-type]


def test_compare_is_paired_by_image() -> None:
    better = curve_of([1, 2], [0.8, 0.9], image_score=np.full(1000, 0.85, np.float32))
    worse = curve_of([1, 2], [0.8, 0.9], image_score=np.full(1000, 0.80, np.float32))
    gain = compare(worse, better)
    assert float(gain.value) == pytest.approx(0.05)
    assert float(gain.low) > 0
    assert float(compare(better, worse).high) < 0
    with pytest.raises(ValueError, match="same images and budgets"):
        compare(better, curve_of([1, 3], [0.8, 0.9]))


def test_operating_point_agrees_with_the_outcome_of_its_thresholds() -> None:
    table = graded_table(300, 3)
    policy = ExitPolicy((0.6, 0.8))
    found = operating_point(table, "it", policy, held_out=True)
    expected = outcome(table, policy.thresholds)
    assert float(found.accuracy.value) == pytest.approx(expected.accuracy)
    assert found.macs == pytest.approx(expected.cost)
    assert found.top5 == pytest.approx(expected.top5)
    assert found.share == pytest.approx(tuple(expected.share))
    assert found.inputs == pytest.approx(float(expected.share @ [1, 2, 3]))
    with pytest.raises(ValueError, match="3 exits"):
        operating_point(table, "it", ExitPolicy((0.5, 0.5, 0.5)))


def test_operating_point_follows_the_answer_rule_and_the_temperatures() -> None:
    # One image: right and sure at exit 1, wrong and less sure at exit 2.
    table = ExitTable(
        np.array([[0.6, 0.5]], np.float32),
        np.array([[True, False]]),
        np.array([1.0, 2.0]),
        temperatures=np.array([1.0, 2.0]),
        scaled_confidence=np.array([[[0.6, 0.5]], [[0.4, 0.3]]], np.float32),
        scaled_nll=np.ones((2, 1, 2), np.float32),
    )
    last = operating_point(table, "", ExitPolicy((0.7,)))
    surest = operating_point(table, "", ExitPolicy((0.7,), answer="surest"))
    assert (float(last.accuracy.value), float(surest.accuracy.value)) == (0, 1)
    assert last.share == surest.share == (0, 1)
    leaves = operating_point(table, "", ExitPolicy((0.5,)))
    cooled = operating_point(table, "", ExitPolicy((0.5,), temperatures=(2.0, 2.0)))
    assert (leaves.share, cooled.share) == ((1, 0), (0, 1))


def test_reading_a_curve_between_its_points() -> None:
    curve = curve_of([1, 2, 4], [0.6, 0.8, 0.7])
    assert cost_to_reach(curve, 0.7) == pytest.approx(1.5e9)
    assert cost_to_reach(curve, 0.5) == pytest.approx(1e9)
    assert cost_to_reach(curve, 0.8) == pytest.approx(2e9)
    assert cost_to_reach(curve, 0.81) is None


def test_reading_a_curve_whose_points_are_not_in_order() -> None:
    curve = curve_of([4, 1, 2], [0.7, 0.6, 0.8])
    assert cost_to_reach(curve, 0.7) == pytest.approx(1.5e9)

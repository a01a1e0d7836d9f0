"""Temperatures, recipes and what is expected of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import GRID, WITHOUT_GRID, synthetic_table

from anchornet_ext.policy import calibration
from anchornet_ext.policy.calibration import (
    Goal,
    Recipe,
    cross_fit,
    fit_policy,
    policy_outcome,
)
from anchornet_ext.policy.exit_policy import ExitPolicy
from anchornet_ext.policy.exit_table import ExitTable
from anchornet_ext.policy.temperature import fit_temperatures

PLAIN = Recipe(Goal(budget=1.8e9), answer="last", temperatures="off")


def test_temperatures_have_the_lowest_loss_of_the_grid() -> None:
    table = synthetic_table(500, seed=1)
    assert table.scaled_nll is not None
    fitted = fit_temperatures(table)
    for t, value in enumerate(fitted):
        losses = {g: table.scaled_nll[i, :, t].mean() for i, g in enumerate(GRID.tolist())}
        assert losses[float(value)] == min(losses.values())


def test_louder_logits_need_that_much_more_temperature() -> None:
    quiet = fit_temperatures(synthetic_table(2000, seed=2))
    loud = fit_temperatures(synthetic_table(2000, seed=2, loudness=(1.0, 2.0, 0.5)))
    assert np.array_equal(loud / quiet, [1.0, 2.0, 0.5])


def test_where_temperature_does_not_matter_it_is_one() -> None:
    """All logits equal: the loss is log n whatever they are divided by."""
    table = synthetic_table(50, loudness=(0.0, 0.0, 0.0))
    assert fit_temperatures(table).tolist() == [1.0, 1.0, 1.0]


def test_a_label_of_no_probability_at_all_excludes_a_temperature() -> None:
    table = synthetic_table(50)
    assert table.scaled_nll is not None
    nll = table.scaled_nll.copy()
    nll[:3, 0, :] = np.inf  # what float32 makes of a small temperature
    assert (fit_temperatures(replace(table, scaled_nll=nll)) > 1).all()


@pytest.mark.parametrize("method", ["search", "geometric"])
def test_a_budget_is_kept_and_used(method: Any) -> None:
    table = synthetic_table(600, seed=3)
    assert table.cost is not None
    recipe = replace(PLAIN, method=method)
    result = policy_outcome(table, fit_policy(table, recipe))
    assert 1.5e9 < result.cost <= 1.8e9
    assert table.correct[:, 0].mean() < result.accuracy <= table.correct[:, -1].mean() + 0.05
    held_out = cross_fit(table, recipe)
    assert held_out.cost == pytest.approx(1.8e9, abs=6 * held_out.cost_error + 0.3e9)
    assert held_out.accuracy == pytest.approx(result.accuracy, abs=0.05)


def test_an_accuracy_is_reached_as_cheaply_as_it_goes() -> None:
    table = synthetic_table(600, seed=4)
    wanted = float(table.correct[:, 1].mean())
    policy = fit_policy(table, replace(PLAIN, goal=Goal(accuracy=wanted)))
    result = policy_outcome(table, policy)
    assert result.accuracy >= wanted
    assert result.cost < 2e9  # cheaper than sending everybody to exit 2


def test_milliseconds_are_a_cost_too() -> None:
    table = synthetic_table(300, milliseconds=np.array([1.0, 10.0, 11.0]))
    policy = fit_policy(table, replace(PLAIN, goal=Goal(budget=4.0, unit="milliseconds")))
    assert policy_outcome(table, policy, "milliseconds").cost <= 4.0
    assert cross_fit(table, replace(PLAIN, goal=Goal(budget=4.0, unit="milliseconds"))).cost < 6


@settings(max_examples=15, deadline=None)
@given(count=st.integers(40, 90), splits=st.integers(1, 3), seed=st.integers(0, 9))
def test_every_image_is_measured_once_in_a_split_and_never_fitted_then(
    count: int, splits: int, seed: int
) -> None:
    """A fit that would betray itself: it makes its own images leave at exit 1, others at exit 2."""
    table = synthetic_table(count, image_ids=np.arange(count).astype("S4"), **WITHOUT_GRID)
    fitted: list[set[bytes]] = []

    def fit(half: ExitTable) -> ExitPolicy:
        assert half.image_ids is not None
        fitted.append(set(half.image_ids.tolist()))
        return ExitPolicy((1.0, -1.0) if len(fitted) % 2 else (-1.0, -1.0))

    held_out = calibration._cross_fit(table, replace(PLAIN, seed=seed), splits, fit)
    assert len(fitted) == 2 * splits
    assert table.image_ids is not None
    everyone = set(table.image_ids.tolist())
    spent = np.zeros(count)
    for first, second in zip(fitted[::2], fitted[1::2], strict=True):
        assert first | second == everyone
        assert not first & second
        # The first policy sends the second half to exit 2, the second one the first to exit 1.
        spent += [2e9 if name in second else 1e9 for name in table.image_ids.tolist()]
    assert held_out.spent == pytest.approx(spent / splits)
    assert held_out.splits == splits


def test_the_spread_over_images_is_the_error() -> None:
    table = synthetic_table(400, seed=5)
    held_out = cross_fit(table, PLAIN, splits=1)
    p = held_out.accuracy
    assert held_out.accuracy_error == pytest.approx(np.sqrt(p * (1 - p) / 399))
    assert set(np.unique(held_out.right)) == {0.0, 1.0}


def test_a_recipe_repeats_itself() -> None:
    table = synthetic_table(200, seed=6)
    recipe = Recipe(Goal(budget=2e9))
    assert fit_policy(table, recipe) == fit_policy(table, recipe)
    one, two = cross_fit(table, recipe), cross_fit(table, recipe)
    assert np.array_equal(one.right, two.right)
    assert np.array_equal(one.spent, two.spent)


def two_minds(count: int = 1500) -> ExitTable:
    """Exit 2 knows more than exit 1 of every other image, and nothing of the rest.

    Its confidence says so with a temperature of 4 only; with 1 it is always sure.
    """
    random = np.random.default_rng(0)
    first = random.uniform(0.2, 0.9, count)
    second = np.where(np.arange(count) % 2, 0.95, 0.2)
    truth = np.stack([first, second], axis=1)
    reported = np.stack([first, np.full(count, 0.99)], axis=1)
    nll = np.array([[0.5, 2.0], [0.6, 0.5]])
    return ExitTable(
        confidence=reported.astype(np.float32),
        correct=random.random((count, 2)) < truth,
        cost=np.array([1.0, 2.0]),
        temperatures=np.array([1.0, 4.0]),
        scaled_confidence=np.stack([reported, truth]).astype(np.float32),
        scaled_nll=np.repeat(nll[:, None], count, axis=1).astype(np.float32),
    )


def test_rules_are_taken_where_they_win() -> None:
    table = two_minds()
    recipe = Recipe(Goal(budget=2.0))
    policy = fit_policy(table, recipe)
    assert (policy.answer, policy.temperatures) == ("surest", (1.0, 4.0))
    assert fit_policy(table, replace(recipe, temperatures="off")).answer == "last"
    true = table.with_temperatures((4.0, 4.0))  # without a grid, and right as it is
    assert fit_policy(true, recipe).answer == "surest"
    best = cross_fit(table, recipe)
    for other in (replace(recipe, temperatures="off"), replace(recipe, answer="last")):
        assert best.accuracy > cross_fit(table, other).accuracy + 0.02
    # A target accuracy is the same question the other way round.
    policy = fit_policy(table, Recipe(Goal(accuracy=0.65)))
    assert (policy.answer, policy.temperatures) == ("surest", (1.0, 4.0))


def test_rules_that_change_nothing_are_not_taken() -> None:
    """Predictions that never change: whose counts, and how sure it is, makes no difference."""
    table = synthetic_table(300, seed=8)
    same = np.repeat(table.correct[:, :1], 3, axis=1)
    unmoved = replace(table, correct=same, prediction=None, label=None)
    assert fit_policy(unmoved, replace(PLAIN, answer="auto")).answer == "last"
    policy = fit_policy(unmoved, Recipe(Goal(accuracy=float(same.mean()))))
    assert (policy.answer, policy.temperatures) == ("last", None)


def test_rules_that_were_asked_for_are_taken() -> None:
    table = synthetic_table(200, seed=9)
    policy = fit_policy(table, replace(PLAIN, answer="surest", temperatures="on"))
    assert policy.answer == "surest"
    assert policy.temperatures == tuple(fit_temperatures(table))
    # The table under the policy is what the thresholds were fitted on.
    seen = calibration.applied(table, policy)
    assert seen.correct[:, 0].tolist() == table.correct[:, 0].tolist()
    assert policy_outcome(table, policy).cost <= 1.8e9


def test_an_accuracy_out_of_a_halfs_reach_does_not_end_the_measurement() -> None:
    """What all images together just reach, one of two halves does not."""
    table = synthetic_table(100, seed=10)
    best = fit_policy(table, replace(PLAIN, goal=Goal(budget=3e9)))
    reached = policy_outcome(table, best).accuracy
    held_out = cross_fit(table, replace(PLAIN, goal=Goal(accuracy=reached)))
    assert held_out.accuracy <= reached


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        (PLAIN, {"cost": None}, "no costs"),
        (replace(PLAIN, goal=Goal(budget=5.0, unit="milliseconds")), {}, "no measured millis"),
        (replace(PLAIN, goal=Goal(budget=1e8)), {}, "budget of 100M cannot be met.* 1G"),
        (replace(PLAIN, goal=Goal(accuracy=1.0)), {}, "out of reach"),
        (replace(PLAIN, temperatures="on"), WITHOUT_GRID, "no temperature grid"),
    ],
)
def test_what_cannot_be_done_is_said(recipe: Recipe, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_policy(synthetic_table(100, **options), recipe)


def test_tables_that_are_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match=r"39 images, too few.*at least 40"):
        cross_fit(synthetic_table(39), PLAIN)
    with pytest.raises(ValueError, match="only one exit"):
        fit_policy(synthetic_table(100).first_exits(1), PLAIN)


@pytest.mark.parametrize(
    "options",
    [{}, {"budget": 1.0, "accuracy": 0.5}, {"budget": 0.0}, {"accuracy": 1.1}, {"accuracy": 0.0},
     {"budget": float("nan")}, {"budget": float("inf")}],
)  # fmt: skip
def test_goals_that_are_none_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must be|one of the two"):
        Goal(**options)

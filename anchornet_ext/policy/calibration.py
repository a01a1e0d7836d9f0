"""An exit policy for a goal, and what to expect of it on images that it was not fitted on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .exit_policy import Answer, ExitPolicy
from .exit_table import ExitTable
from .fitting import Method, fit_thresholds
from .outcome import Outcome, outcome
from .quantities import short
from .temperature import fit_temperatures

Unit = Literal["macs", "milliseconds"]
Choice = Literal["on", "off", "auto"]

#: Halves of fewer images than that say nothing.
FEWEST_IMAGES = 20
#: Thresholds hardly change beyond that many images, while the search takes ever longer.
MOST_FITTED = 50_000
#: On small tables it matters which half an image falls into, so they are split repeatedly.
_SPLIT_IMAGES = 20_000
_MOST_SPLITS = 10
_MOST_INNER_SPLITS = 3


@dataclass(frozen=True)
class Goal:
    """What the thresholds are fitted to: a mean cost not to exceed, or an accuracy to reach.

    Attributes:
        budget: mean cost of an image, in `unit`; or None.
        accuracy: share of right answers to reach at the lowest cost; or None.
        unit: what costs are counted in.

    Raises:
        ValueError: both or neither are given, or a value is out of its range.
    """

    budget: float | None = None
    accuracy: float | None = None
    unit: Unit = "macs"

    def __post_init__(self) -> None:
        if (self.budget is None) == (self.accuracy is None):
            raise ValueError("a goal is a budget or an accuracy, one of the two")
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise ValueError(f"a budget must be positive, got {self.budget}")
        if self.accuracy is not None and not 0 < self.accuracy <= 1:
            raise ValueError(f"an accuracy must be above 0 and at most 1, got {self.accuracy}")


@dataclass(frozen=True)
class Recipe:
    """How a policy is made from a table.

    Attributes:
        goal: see there.
        method: of `fit_thresholds`.
        answer: "last", "surest", or "auto": whichever is better on held-out images.
        temperatures: "on" (of the lowest loss), "off" (none), or "auto" as above.
        seed: of the splits into halves.
    """

    goal: Goal
    method: Method = "search"
    answer: Answer | Literal["auto"] = "auto"
    temperatures: Choice = "auto"
    seed: int = 0


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What a recipe's policies do on images that they were not fitted on.

    Attributes:
        right: (N,) how often each image was answered right, 0 to 1 (mean over the splits).
        spent: (N,) mean cost of each image.
        num_fitted: how many images each policy was fitted on.
        splits: into halves; in each one every image was measured once.
    """

    right: NDArray[np.float64]
    spent: NDArray[np.float64]
    num_fitted: int
    splits: int

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    @property
    def accuracy_error(self) -> float:
        """Standard error of the accuracy, from the spread over the images."""
        return _standard_error(self.right)

    @property
    def cost(self) -> float:
        return float(self.spent.mean())

    @property
    def cost_error(self) -> float:
        """Standard error of the cost."""
        return _standard_error(self.spent)


def applied(table: ExitTable, policy: ExitPolicy) -> ExitTable:
    """The table with a policy's temperatures and answer rule; the thresholds are left to apply.

    Raises:
        ValueError: the policy is for another number of exits, or the table does not have its
            temperatures.
    """
    policy.require_exits(table.num_exits)
    if policy.temperatures is not None:
        table = table.with_temperatures(policy.temperatures)
    return table.with_answer(policy.answer)


def policy_outcome(table: ExitTable, policy: ExitPolicy, unit: Unit = "macs") -> Outcome:
    """What a policy does on a table: who leaves where, how right and at what cost."""
    return outcome(applied(table, policy), policy.thresholds, unit)


def fit_policy(table: ExitTable, recipe: Recipe) -> ExitPolicy:
    """The policy that a recipe makes from a table.

    Raises:
        ValueError: the goal is out of reach, the table lacks the cost or the temperatures asked
            for, or it has too few images or exits.
    """
    check_table(table, recipe)
    answer, scaled = _chosen_rules(table, recipe)
    return _fit(table, recipe, answer, scaled)


def cross_fit(table: ExitTable, recipe: Recipe, *, splits: int | None = None) -> HeldOut:
    """Measures a recipe, its choice of rules included, on images that it has not seen.

    The images are split into halves; the recipe is carried out on one and measured on the other,
    both ways.

    Args:
        splits: how often; None: once for large tables, up to 10 times for small ones.

    Raises:
        ValueError: as `fit_policy`; but where a half does not reach the accuracy wanted, the most
            accurate policy is taken for it.
    """
    check_table(table, recipe)
    if splits is None:
        splits = default_splits(table)
    return _cross_fit(table, recipe, splits, lambda half: _fit_half(half, recipe))


def cross_fit_budgets(
    table: ExitTable, recipe: Recipe, budgets: Sequence[float], *, splits: int | None = None
) -> list[HeldOut]:
    """As `cross_fit`, for policies of other budgets with the rules chosen for the recipe's goal.

    The rules are chosen on each half anew: chosen on the whole table, they would have seen the
    images that they are measured on.

    Raises:
        ValueError: as `cross_fit`; or a budget is below the cost of the first exit.
    """
    check_table(table, recipe)
    if splits is None:
        splits = default_splits(table)
    rules = [
        _chosen_rules(table.subset(fitted[:MOST_FITTED]), recipe)
        for fitted, _ in halves(table.num_images, splits, recipe.seed)
    ]
    found = []
    for budget in budgets:
        at = replace(recipe, goal=Goal(budget=budget, unit=recipe.goal.unit))
        check_table(table, at)
        found.append(_cross_fit(table, at, splits, _with_rules(at, rules)))
    return found


def check_table(table: ExitTable, recipe: Recipe) -> None:
    """Raises ValueError if a recipe cannot be carried out on a table, whatever its numbers."""
    if table.num_exits < 2:
        raise ValueError("the table has only one exit, so there is nothing to decide")
    if table.num_images < 2 * FEWEST_IMAGES:
        raise ValueError(
            f"the table has {table.num_images} images, too few to fit a policy on one half and "
            f"measure it on the other: at least {2 * FEWEST_IMAGES} are needed"
        )
    cost = table.costs(recipe.goal.unit)
    if recipe.goal.budget is not None and recipe.goal.budget < cost[0]:
        raise ValueError(
            f"a budget of {_amount(recipe.goal.budget, recipe.goal.unit)} cannot be met: an image "
            f"that leaves at the first exit costs {_amount(cost[0], recipe.goal.unit)} already"
        )
    if recipe.temperatures == "on" and table.temperatures is None:
        fit_temperatures(table)  # says what is missing


def _amount(value: float, unit: Unit) -> str:
    return short(value) if unit == "macs" else f"{value:g} ms"


def _cross_fit(
    table: ExitTable, recipe: Recipe, splits: int, fit: Callable[[ExitTable], ExitPolicy]
) -> HeldOut:
    count = table.num_images
    cost = table.costs(recipe.goal.unit)
    right, spent = np.zeros(count), np.zeros(count)
    for fitted, measured in halves(count, splits, recipe.seed):
        policy = fit(table.subset(fitted[:MOST_FITTED]))
        seen = applied(table.subset(measured), policy)
        index = outcome(seen, policy.thresholds, recipe.goal.unit).exit_index
        right[measured] += seen.correct[np.arange(len(index)), index]
        spent[measured] += cost[index]
    return HeldOut(right / splits, spent / splits, min(count // 2, MOST_FITTED), splits)


def default_splits(table: ExitTable) -> int:
    """How often a table is split into halves: once if it is large, up to 10 times if small."""
    return min(_MOST_SPLITS, max(1, _SPLIT_IMAGES // table.num_images))


def halves(
    count: int, splits: int, seed: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """The images to fit on and those to measure, both ways for each of the random splits."""
    generator = np.random.default_rng(seed)
    half = count // 2
    for _ in range(splits):
        order = generator.permutation(count)
        yield order[:half], order[half:]
        yield order[half:], order[:half]


def _with_rules(
    recipe: Recipe, rules: Sequence[tuple[Answer, bool]]
) -> Callable[[ExitTable], ExitPolicy]:
    """Fits one half after the other, each with its own rules."""
    remaining = iter(rules)
    return lambda half: _fit(half, recipe, *next(remaining))


def _fit(table: ExitTable, recipe: Recipe, answer: Answer, scaled: bool) -> ExitPolicy:
    temperatures = tuple(fit_temperatures(table).tolist()) if scaled else None
    rules = ExitPolicy.never(table.num_exits)
    rules = replace(rules, temperatures=temperatures, answer=answer)
    seen = applied(table, rules)
    goal = recipe.goal
    fit = fit_thresholds(
        seen.confidence,
        seen.correct,
        seen.costs(goal.unit),
        goal.budget,
        accuracy=goal.accuracy,
        method=recipe.method,
    )
    return replace(rules, thresholds=tuple(fit.thresholds.tolist()))


def _fit_half(half: ExitTable, recipe: Recipe) -> ExitPolicy:
    answer, scaled = _chosen_rules(half, recipe)
    return _fit_or_best(half, recipe, answer, scaled)


def _fit_or_best(table: ExitTable, recipe: Recipe, answer: Answer, scaled: bool) -> ExitPolicy:
    """As `_fit`, and the most accurate policy where the accuracy is out of a half's reach."""
    try:
        return _fit(table, recipe, answer, scaled)
    except ValueError:
        if recipe.goal.accuracy is None:
            raise
        dearest = float(table.costs(recipe.goal.unit)[-1])
        at_any_cost = replace(recipe, goal=Goal(budget=dearest, unit=recipe.goal.unit))
        return _fit(table, at_any_cost, answer, scaled)


def _chosen_rules(table: ExitTable, recipe: Recipe) -> tuple[Answer, bool]:
    """The answer rule, and whether there are temperatures.

    What is left to choose is chosen by cross-fitting within this table: a rule is taken instead of
    a plainer one when, for the same budget, it is better by more than a standard error. A target
    accuracy is first turned into the budget that the plainest rule needs for it, so that there is
    one thing to compare and not two.
    """
    answers: Sequence[Answer] = ("last", "surest") if recipe.answer == "auto" else (recipe.answer,)
    scalings: Sequence[bool] = (recipe.temperatures == "on",)
    if recipe.temperatures == "auto":
        scalings = (False,) if table.temperatures is None else (False, True)
    rules = [(answer, scaled) for scaled in scalings for answer in answers]
    best = rules[0]
    if len(rules) == 1 or table.num_images < 2 * FEWEST_IMAGES:
        return best

    splits = min(_MOST_INNER_SPLITS, max(1, _SPLIT_IMAGES // table.num_images))

    def measured(recipe: Recipe, rule: tuple[Answer, bool]) -> HeldOut:
        return _cross_fit(table, recipe, splits, lambda half: _fit_or_best(half, recipe, *rule))

    held_out = measured(recipe, best)
    if recipe.goal.accuracy is not None:
        budget = max(held_out.cost, float(table.costs(recipe.goal.unit)[0]))
        recipe = replace(recipe, goal=Goal(budget=budget, unit=recipe.goal.unit))
        held_out = measured(recipe, best)
    for rule in rules[1:]:
        other = measured(recipe, rule)
        gain = other.right - held_out.right  # the same images in the same halves
        if gain.mean() > _standard_error(gain):
            best, held_out = rule, other
    return best


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values)))

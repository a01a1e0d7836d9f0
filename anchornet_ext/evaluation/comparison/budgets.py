"""Accuracies at budgets that all systems share, and which differences are more than chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, Context
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from anchornet_ext.evaluation.curves import Costs, exit_costs, fitted_thresholds
from anchornet_ext.evaluation.intervals import Estimate, paired_difference, share
from anchornet_ext.policy.calibration import FEWEST_IMAGES, MOST_FITTED, default_splits, halves
from anchornet_ext.policy.outcome import apply_thresholds

from .entries import Entry

#: How many budgets are chosen where nobody says which.
NUM_BUDGETS = 5


@dataclass(frozen=True)
class Score:
    """One system at one budget.

    Attributes:
        name: of the system.
        accuracy: top-1 on images that the thresholds were not fitted on, a scalar.
        cost: mean cost that was spent.
        behind: how far the system is behind the best one, paired by image, with an interval that
            is wide enough for all comparisons of one kind of cost together; 0 for the best one.
    """

    name: str
    accuracy: Estimate
    cost: float
    behind: Estimate

    @property
    def is_told_apart(self) -> bool:
        """Whether it is behind by more than chance."""
        return bool(self.behind.low > 0)


@dataclass(frozen=True)
class Standing:
    """All systems at one budget.

    Attributes:
        costs: what the budget counts.
        budget: mean cost of an image that is allowed.
        scores: of the systems that can keep to it, the best one first.
        too_dear: names of those whose first exit costs more.
        unknown: names of those whose costs are not known.
    """

    costs: Costs
    budget: float
    scores: tuple[Score, ...]
    too_dear: tuple[str, ...]
    unknown: tuple[str, ...] = ()


def why_no_standings(entries: Sequence[Entry]) -> str | None:
    """Why accuracies at budgets cannot be had, in words; None if they can."""
    count = entries[0].table.num_images
    if count < 2 * FEWEST_IMAGES:
        return (
            f"thresholds are fitted on one half of the images and measured on the other, and "
            f"{count} images are too few for that (at least {2 * FEWEST_IMAGES})"
        )
    return None


def standings(
    entries: Sequence[Entry],
    costs: Costs,
    budgets: Sequence[float] | None = None,
    *,
    seed: int = 0,
) -> list[Standing]:
    """The systems at shared budgets, best first.

    Each system's thresholds are fitted to the budget on one random half of the images and measured
    on the other, both ways; all systems see the same halves. A system with one exit needs none.

    Args:
        entries: of the same images in one order.
        costs: "macs" or "milliseconds"; entries without these are left out.
        budgets: mean costs; None: a few between where a second system can take part and where the
            dearest system ends.
        seed: of the halves.

    Raises:
        ValueError: too few images (see `why_no_standings`).
    """
    reason = why_no_standings(entries)
    if reason is not None:
        raise ValueError(f"no comparison at budgets: {reason}")
    known = [
        entry
        for entry in entries
        if costs != "milliseconds" or entry.table.milliseconds is not None
    ]
    names = {entry.name for entry in known}
    unknown = tuple(entry.name for entry in entries if entry.name not in names)
    if len(known) < 2:
        return []
    values = [exit_costs(entry.table, costs) for entry in known]
    chosen = np.array(sorted(budgets) if budgets else shared_budgets(values))
    scores = [score_images(entry, costs, chosen, seed) for entry in known]
    pairs = sum(math.comb(sum(own[0] <= b for own in values), 2) for b in chosen)
    width = NormalDist().inv_cdf(1 - 0.05 / (2 * max(1, pairs)))
    found = []
    for place, budget in enumerate(chosen.tolist()):
        inside = [n for n, own in enumerate(values) if own[0] <= budget]
        if not inside:
            continue
        best = max(inside, key=lambda n: float(scores[n][0][:, place].mean()))
        ranked = []
        for n in inside:
            own = scores[n][0][:, place]
            behind = paired_difference(own, scores[best][0][:, place], width)
            if n == best:
                behind = Estimate(*(np.zeros(()) for _ in range(3)))
            accuracy = share(float(own.sum(dtype=np.float64)), len(own))
            ranked.append(Score(known[n].name, accuracy, float(scores[n][1][place]), behind))
        ranked.sort(key=lambda score: -float(score.accuracy.value))
        dear = tuple(known[n].name for n in range(len(known)) if n not in inside)
        found.append(Standing(costs, budget, tuple(ranked), dear, unknown))
    return found


def shared_budgets(values: Sequence[NDArray[np.float64]]) -> list[float]:
    """A few round mean costs, evenly spaced in their logarithm.

    Args:
        values: of each of two or more systems, the costs of its exits.
    """
    low = sorted(float(own[0]) for own in values)[1]
    high = max(float(own[-1]) for own in values)
    steps = np.geomspace(low, max(high, low), NUM_BUDGETS) if high > low else [low]
    rounded = {_rounded_up(float(step)) for step in steps}
    return sorted(rounded)


def score_images(
    entry: Entry, costs: Costs, budgets: NDArray[np.float64], seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """How often each image is right at each budget, and what is spent.

    Returns:
        (N, P) correctness on the other half, a mean over the splits, and (P,) mean costs; 0 and NaN
        at budgets below the first exit.
    """
    table = entry.table
    values = exit_costs(table, costs)
    count = table.num_images
    scores = np.zeros((count, len(budgets)), np.float32)
    spent = np.full(len(budgets), np.nan)
    inside = np.flatnonzero(budgets >= values[0])
    if len(inside) == 0:
        return scores, spent
    if table.num_exits == 1:
        scores[:, inside] = table.correct[:, :1]
        spent[inside] = values[0]
        return scores, spent
    splits = default_splits(table)
    left = np.zeros((len(budgets), table.num_exits))
    for fitted, measured in halves(count, splits, seed):
        thresholds = fitted_thresholds(
            table, fitted[:MOST_FITTED], values, budgets[inside], "search"
        )
        confidence, correct = table.confidence[measured], table.correct[measured]
        rows = np.arange(len(measured))
        for place, limits in zip(inside, thresholds, strict=True):
            index = apply_thresholds(confidence, limits)
            scores[measured, place] += correct[rows, index]
            left[place] += np.bincount(index, minlength=table.num_exits)
    scores /= splits  # at the end: ten times a tenth is more than 1
    spent[inside] = left[inside] @ values / (count * splits)
    return scores, spent


def _rounded_up(value: float) -> float:
    """To two digits, upwards, and never below `value`: what costs 3.81 fits a budget of 3.9."""
    two_digits = Context(prec=2, rounding=ROUND_CEILING)
    return float(two_digits.create_decimal(repr(value)))

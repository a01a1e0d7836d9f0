"""Threshold fitting in plain NumPy: slow, obvious, the specification of csrc/exit_policy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Evaluation(NamedTuple):
    """What a policy does on a table."""

    exit_index: NDArray[np.int64]
    """(N)"""
    correct: int
    """Right answers."""
    cost: float
    """Mean over the images."""


def evaluate(
    confidence: NDArray[np.floating],
    correct: NDArray[np.bool_],
    cost: Floats,
    thresholds: Floats,
) -> Evaluation:
    """Leaves at the first exit t with confidence > thresholds[t], at the last otherwise."""
    images, exits = confidence.shape
    exit_index = np.empty(images, np.int64)
    for i in range(images):
        exit_index[i] = exits - 1
        for t in range(exits - 1):
            if confidence[i, t] > thresholds[t]:
                exit_index[i] = t
                break
    right = sum(int(correct[i, exit_index[i]]) for i in range(images))
    total = 0.0
    for t in range(exits):
        total += float((exit_index == t).sum()) * float(cost[t])
    mean = min(max(total / images, float(cost[0])), float(cost[-1]))
    return Evaluation(exit_index, right, mean)


def threshold_between(below: float, above: float) -> float:
    """Midway, in float32 if float32 has a number there; `x > threshold` separates the two."""
    middle = below + (above - below) / 2
    single = float(np.float32(middle))
    if below <= single < above:
        return single
    return middle if middle < above else below


def choices(confidence: NDArray[np.floating], exit_index: int) -> list[float]:
    """Every threshold of an exit that does something different, from "all leave" to "none"."""
    values = [float(value) for value in np.unique(confidence[:, exit_index])]
    middles = [threshold_between(a, b) for a, b in itertools.pairwise(values)]
    return [-1.0, *middles, 1.0]


def geometric_thresholds(confidence: NDArray[np.floating], u: float) -> Floats:
    """Shares proportional to u^t (1-u)^(T-1-t), that is to q^t with q = u / (1-u), leave.

    At exit t leave the floor(N * share) most confident of the images still there, and those as
    confident as the last of them.
    """
    images, exits = confidence.shape
    share = []
    for t in range(exits):
        product = 1.0
        for _ in range(t):
            product *= u
        for _ in range(t, exits - 1):
            product *= 1 - u
        share.append(product)
    total = 0.0
    for product in share:
        total += product
    thresholds = np.empty(exits - 1)
    left = np.ones(images, np.bool_)
    for t in range(exits - 1):
        wanted = int(np.floor(float(images) * share[t] / total))
        options = choices(confidence, t)
        if wanted >= left.sum():
            thresholds[t] = -1.0
        elif wanted == 0:
            thresholds[t] = 1.0
        else:
            last_to_leave = np.sort(confidence[left, t])[::-1][wanted - 1]
            thresholds[t] = max(option for option in options if option < last_to_leave)
        left &= ~(confidence[:, t] > thresholds[t])
    return thresholds


def fit_geometric(
    confidence: NDArray[np.floating], correct: NDArray[np.bool_], cost: Floats, budget: float
) -> Floats:
    """The progression of the largest cost within the budget that 40 bisections of u meet."""
    best = geometric_thresholds(confidence, 1.0)
    if evaluate(confidence, correct, cost, best).cost <= budget:
        return best
    best = geometric_thresholds(confidence, 0.0)
    best_cost = evaluate(confidence, correct, cost, best).cost
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        trial = geometric_thresholds(confidence, middle)
        trial_cost = evaluate(confidence, correct, cost, trial).cost
        if trial_cost > budget:
            high = middle
            continue
        low = middle
        if trial_cost > best_cost:
            best, best_cost = trial, trial_cost
    return best


def reach_geometric(
    confidence: NDArray[np.floating], correct: NDArray[np.bool_], cost: Floats, wanted: int
) -> Floats | None:
    """The first u of a grid of 201 with this many right answers, refined by 40 bisections."""
    for k in range(201):
        best = geometric_thresholds(confidence, k / 200)
        score = evaluate(confidence, correct, cost, best)
        if score.correct < wanted:
            continue
        if k == 0:
            return best
        low, high = (k - 1) / 200, k / 200
        best_cost = score.cost
        for _ in range(40):
            middle = (low + high) / 2
            trial = geometric_thresholds(confidence, middle)
            score = evaluate(confidence, correct, cost, trial)
            if score.correct < wanted:
                low = middle
                continue
            high = middle
            if score.cost < best_cost:
                best, best_cost = trial, score.cost
        return best
    return None


def all_policies(confidence: NDArray[np.floating]) -> Iterator[Floats]:
    """Every combination of thresholds that does something different: only for tiny tables."""
    columns = [choices(confidence, t) for t in range(confidence.shape[1] - 1)]
    for combination in itertools.product(*columns):
        yield np.array(combination, np.float64)


def best_within(
    confidence: NDArray[np.floating], correct: NDArray[np.bool_], cost: Floats, budget: float
) -> Evaluation:
    """The most right answers within the budget over all combinations, then the lowest cost."""
    scores = (evaluate(confidence, correct, cost, policy) for policy in all_policies(confidence))
    within = (score for score in scores if score.cost <= budget)
    return max(within, key=lambda score: (score.correct, -score.cost))


def cheapest_reaching(
    confidence: NDArray[np.floating], correct: NDArray[np.bool_], cost: Floats, wanted: int
) -> Evaluation | None:
    """The lowest cost with this many right answers over all combinations."""
    scores = (evaluate(confidence, correct, cost, policy) for policy in all_policies(confidence))
    reaching = [score for score in scores if score.correct >= wanted]
    return min(reaching, key=lambda score: (score.cost, -score.correct), default=None)

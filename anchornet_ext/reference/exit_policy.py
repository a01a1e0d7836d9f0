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
    """Midway, rounded down to float32 if that is not below `below`; `x > threshold` separates."""
    middle = below + (above - below) / 2
    single = np.float32(middle)
    if float(single) > middle:
        single = np.nextafter(single, np.float32(0))
    if float(single) >= below:
        return float(single)
    return middle if middle < above else below


def choices(confidence: NDArray[np.floating], exit_index: int) -> list[float]:
    """Every threshold of an exit that does something different, from "all leave" to "none"."""
    values = [float(value) for value in np.unique(confidence[:, exit_index])]
    middles = [threshold_between(a, b) for a, b in itertools.pairwise(values)]
    return [-1.0, *middles, 1.0]


def geometric_thresholds(
    confidence: NDArray[np.floating], u: float, exits: int | None = None
) -> Floats:
    """Shares proportional to u^t (1-u)^(E-1-t), that is to q^t with q = u / (1-u), leave.

    At exit t leave the floor(N * share) most confident of the images still there, and those as
    confident as the last of them. Of fewer `exits` than the table has, the last takes the rest.
    """
    images, all_exits = confidence.shape
    exits = all_exits if exits is None else exits
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
    thresholds = np.full(all_exits - 1, -1.0)
    left = np.ones(images, np.bool_)
    for t in range(exits - 1):
        wanted = int(np.floor(float(images) * share[t] / total))
        if wanted >= left.sum():
            thresholds[t] = -1.0
        elif wanted == 0:
            thresholds[t] = 1.0
        else:
            last_to_leave = np.sort(confidence[left, t])[::-1][wanted - 1]
            options = choices(confidence, t)
            thresholds[t] = max(option for option in options if option < last_to_leave)
        left &= ~(confidence[:, t] > thresholds[t])
    return thresholds


def fit_geometric(
    confidence: NDArray[np.floating],
    correct: NDArray[np.bool_],
    cost: Floats,
    budget: float,
    exits: int | None = None,
) -> Floats:
    """The progression of the largest cost within the budget that 40 bisections of u meet."""
    best = geometric_thresholds(confidence, 1.0, exits)
    if evaluate(confidence, correct, cost, best).cost <= budget:
        return best
    best = geometric_thresholds(confidence, 0.0, exits)
    best_cost = evaluate(confidence, correct, cost, best).cost
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        trial = geometric_thresholds(confidence, middle, exits)
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
) -> Floats:
    """The most right answers within the budget over all combinations, then the lowest cost."""

    def order(policy: Floats) -> tuple[int, float]:
        score = evaluate(confidence, correct, cost, policy)
        return (score.correct, -score.cost) if score.cost <= budget else (-1, 0.0)

    return max(all_policies(confidence), key=order)  # the first of equal ones


def cheapest_reaching(
    confidence: NDArray[np.floating], correct: NDArray[np.bool_], cost: Floats, wanted: int
) -> Floats | None:
    """The lowest cost with this many right answers over all combinations, then the most of them."""

    def order(policy: Floats) -> tuple[float, int]:
        score = evaluate(confidence, correct, cost, policy)
        return (score.cost, -score.correct) if score.correct >= wanted else (np.inf, 0)

    best = min(all_policies(confidence), key=order)
    return best if order(best)[0] < np.inf else None


# The search. What it adds to the geometric rule: fewer exits where that is clearly better, and a
# smoothed ascent from there.

STEPS = 1000
REACH = 52
STIFFNESS = 0.1
EVIDENCE = 0.5


def start_of_search(
    confidence: NDArray[np.floating], correct: NDArray[np.bool_], cost: Floats, budget: float
) -> Floats:
    """The geometric rule, over fewer exits or at a lower cost if that is better beyond chance.

    Candidates are the rule over the first E exits, E = T ... 1: what `fit_geometric` finds and the
    most accurate of a grid of 21 progressions that are within the budget. One replaces the rule
    over all exits if it has more right answers by over half a standard error of that difference;
    the one that exceeds it most. One that is no less accurate and cheaper replaces it, too.
    """

    def answers(thresholds: Floats) -> NDArray[np.bool_]:
        exit_index = evaluate(confidence, correct, cost, thresholds).exit_index
        return np.asarray(correct[np.arange(len(correct)), exit_index], np.bool_)

    exits = confidence.shape[1]
    plain = fit_geometric(confidence, correct, cost, budget)
    best, most = plain, 0.0
    for e in range(exits, 0, -1):
        candidates = []
        if 1 < e < exits:
            candidates.append(fit_geometric(confidence, correct, cost, budget, e))
        grid = [geometric_thresholds(confidence, k / 20, e) for k in range(21 if e > 1 else 1)]
        scores = [evaluate(confidence, correct, cost, thresholds) for thresholds in grid]
        within = [k for k in range(len(grid)) if scores[k].cost <= budget]
        candidates.append(grid[max(within, key=lambda k: scores[k].correct)])
        for candidate in candidates:
            score, held = (evaluate(confidence, correct, cost, x) for x in (candidate, best))
            if score.correct >= held.correct and score.cost < held.cost:
                best = candidate  # what buys nothing is not spent
            gain = int(answers(candidate).sum()) - int(answers(plain).sum())
            if gain <= most:
                continue
            differing = int((answers(candidate) != answers(plain)).sum())
            sure = gain - EVIDENCE * float(np.sqrt(float(differing)))
            if sure > most:
                best, most = candidate, sure
    return best


class SmoothedTable:
    """The table as the ascent sees it: each exit's confidences in 1000 bins of equal size.

    A position p of an exit sends images in bins below p on. The objective is the mean of
    accuracy - lambda * cost over positions moved by -REACH ... REACH, uniform and independent.
    """

    def __init__(
        self, confidence: NDArray[np.floating], correct: NDArray[np.bool_], cost: Floats
    ) -> None:
        images, exits = confidence.shape
        keys = [*confidence[:, :-1].T, *correct.T]  # the first decides
        order = np.lexsort(keys[::-1])  # sums over images then do not depend on the rows' order
        self.confidence, self.correct, self.cost = confidence[order], correct[order], cost
        self.bins = np.empty((images, exits - 1), np.int64)
        for t in range(exits - 1):
            x = self.confidence[:, t]
            for i in range(images):
                below, equal = int((x < x[i]).sum()), int((x == x[i]).sum())
                self.bins[i, t] = STEPS * (2 * below + equal) // (2 * images)

    def positions(self, thresholds: Floats) -> list[int]:
        images = len(self.confidence)
        result = []
        for t, threshold in enumerate(thresholds):
            staying = int((self.confidence[:, t] <= threshold).sum())
            if staying == 0:
                result.append(-REACH)  # so far out that no move lets anybody go on
            elif staying == images:
                result.append(STEPS + REACH)
            else:
                result.append((STEPS * staying + images // 2) // images)
        return result

    def cuts(self, positions: list[int]) -> list[int]:
        """Of each exit's thresholds in ascending order, which the positions stand for."""
        result = []
        for t, position in enumerate(positions):
            x = self.confidence[:, t]
            values = np.unique(x)
            bins = [self.bins[np.flatnonzero(x == value)[0], t] for value in values]
            result.append(sum(int(b) < min(max(position, 0), STEPS) for b in bins))
        return result

    def thresholds(self, cuts: list[int]) -> Floats:
        return np.array([choices(self.confidence, t)[cut] for t, cut in enumerate(cuts)])

    def going_on(self, exit_index: int, position: int) -> Floats:
        """(N): the share of the moved positions at which each image goes on."""
        moves = 2 * REACH + 1
        share = np.clip(REACH + position - self.bins[:, exit_index], 0, moves) / moves
        return np.asarray(share, np.float64)

    def climb(self, anchor: list[int], multiplier: float) -> list[int]:
        """Coordinate ascent from the anchor to the local maximum."""
        positions = list(anchor)
        for _ in range(30):
            before = list(positions)
            self._sweep(positions, anchor, multiplier)
            if max(abs(a - b) for a, b in zip(positions, before, strict=True)) <= 1:
                break
        return positions

    def _sweep(self, positions: list[int], anchor: list[int], multiplier: float) -> None:
        images, exits = self.confidence.shape
        moves = 2 * REACH + 1
        scale = multiplier / (self.cost[-1] - self.cost[0])
        # What stopping at each exit is worth, and going on to it.
        stop = self.correct - scale * (self.cost - self.cost[0])  # (N, T)
        worth = stop.copy()
        for t in range(exits - 2, 0, -1):
            on = self.going_on(t, positions[t])
            worth[:, t] = stop[:, t] + on * (worth[:, t + 1] - stop[:, t])
        weight = np.ones(images)
        for t in range(exits - 1):
            gain = np.zeros(STEPS)
            np.add.at(gain, self.bins[:, t], weight * (worth[:, t + 1] - stop[:, t]))
            # gained[k]: if all bins below the position k - 2 * REACH go on
            gained = np.cumsum(np.concatenate([np.zeros(2 * REACH + 1), gain, np.zeros(2 * REACH)]))
            sums = np.concatenate([[0.0], np.cumsum(gained)])

            def objective(position: int, t: int = t, sums: Floats = sums) -> float:
                k = position + REACH
                mean = (sums[k + moves] - sums[k]) / moves
                moved = (position - anchor[t]) / STEPS
                return float(mean - STIFFNESS * float(images) * (moved * moved))

            position = positions[t]
            while position < STEPS + REACH and objective(position + 1) > objective(position):
                position += 1
            while position > -REACH and objective(position - 1) > objective(position):
                position -= 1
            positions[t] = position
            weight = weight * self.going_on(t, position)


def fit_search(
    confidence: NDArray[np.floating], correct: NDArray[np.bool_], cost: Floats, budget: float
) -> Floats:
    """The smoothed ascent, with lambda bisected to the budget; not for tiny tables."""
    first = start_of_search(confidence, correct, cost, budget)
    if confidence.shape[1] == 1:
        return first
    table = SmoothedTable(confidence, correct, cost)

    def fits(cuts: list[int]) -> bool:
        return evaluate(confidence, correct, cost, table.thresholds(cuts)).cost <= budget

    anchor = table.positions(first)
    outside = table.cuts(table.climb(anchor, 0.0))
    if fits(outside):
        return table.thresholds(outside)
    inside = [int((np.unique(confidence[:, t]) <= x).sum()) for t, x in enumerate(first)]
    low, high = 1e-3, 1e2
    for _ in range(14):
        middle = float(np.sqrt(low * high))
        trial = table.cuts(table.climb(anchor, middle))
        if fits(trial):
            high, inside = middle, trial
        else:
            low, outside = middle, trial
    near, far, best = 0.0, 1.0, inside
    for _ in range(20):
        part = (near + far) / 2
        trial = [a + int(np.floor(part * (b - a))) for a, b in zip(inside, outside, strict=True)]
        if fits(trial):
            near, best = part, trial
        else:
            far = part
    return table.thresholds(best)

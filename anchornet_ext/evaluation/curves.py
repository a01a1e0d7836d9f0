"""From an exit table to the protocols' numbers: anytime, budgeted batch, operating points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from anchornet_ext.policy.calibration import (
    FEWEST_IMAGES,
    MOST_FITTED,
    applied,
    default_splits,
    halves,
)
from anchornet_ext.policy.exit_policy import ExitPolicy
from anchornet_ext.policy.exit_table import ExitTable
from anchornet_ext.policy.fitting import Method, pareto
from anchornet_ext.policy.outcome import apply_thresholds

from .intervals import Estimate, paired_difference, share
from .units import plural

Costs = Literal["macs", "milliseconds", "inputs"]
COSTS: tuple[Costs, ...] = ("macs", "milliseconds", "inputs")


@dataclass(frozen=True)
class AnytimeCurve:
    """Every image leaves at the same exit (anytime prediction, section 4.1).

    Attributes:
        system: what it is called in legends.
        num_images: N.
        macs, milliseconds: (T,) of one image at each exit, or None where not known.
        top1, top5: (T,) accuracies; top5 is None where the table does not have it.
        gain: (T - 1,) top-1 of exit t + 1 less that of exit t on the same images (paired).
    """

    system: str
    num_images: int
    macs: NDArray[np.float64] | None
    milliseconds: NDArray[np.float64] | None
    top1: Estimate
    top5: Estimate | None
    gain: Estimate

    @property
    def num_exits(self) -> int:
        """T."""
        return len(self.top1.value)


@dataclass(frozen=True)
class BudgetedCurve:
    """Accuracy that a mean cost buys, with thresholds fitted on other images than are measured.

    P budgets, from the cost of the first exit to where more buys no accuracy; N images; T exits.

    Attributes:
        system: what it is called in legends.
        method: how the thresholds were fitted.
        costs: what the budgets and `cost` count.
        budget: (P,) mean cost of an image that was allowed, increasing.
        cost: (P,) mean cost that was spent on the images measured.
        accuracy: (P,) top-1.
        share: (P, T) of the images that left at each exit.
        image_score: (N,) float32, each image's correctness, averaged over the budgets' range (by
            the trapezoid rule). Its mean is `mean_accuracy`; images in the table's order, so that
            methods can be compared image by image.
        num_fitted: how many images each fit saw.
        splits: how many times the table was split into halves.
        seed: of the splits.
    """

    system: str
    method: Method
    costs: Costs
    budget: NDArray[np.float64]
    cost: NDArray[np.float64]
    accuracy: Estimate
    share: NDArray[np.float64]
    image_score: NDArray[np.float32]
    num_fitted: int
    splits: int
    seed: int

    @property
    def inputs(self) -> NDArray[np.float64]:
        """(P,) expected number of inputs E(t) (Fig. 7): the mean exit, counted from 1."""
        return np.asarray(self.share @ np.arange(1, self.share.shape[1] + 1, dtype=np.float64))

    @property
    def mean_accuracy(self) -> float:
        """Top-1 averaged over the range of budgets: one number for a whole curve."""
        return float(self.image_score.mean(dtype=np.float64))


@dataclass(frozen=True)
class OperatingPoint:
    """One exit policy and what came of it.

    Attributes:
        name: what it is called in tables and figures.
        policy: what decided.
        accuracy: top-1, scalars.
        top5: None where the table does not have it.
        macs: mean multiply-adds of an image; None where the table has no costs.
        share: (T,) of the images that left at each exit.
        held_out: True if the accuracy was measured on images that the thresholds were not fitted
            on, False if on the same ones (then it flatters), None if nothing was fitted.
    """

    name: str
    policy: ExitPolicy
    accuracy: Estimate
    top5: float | None
    macs: float | None
    share: tuple[float, ...]
    held_out: bool | None = None

    @property
    def inputs(self) -> float:
        """Expected number of inputs."""
        return float(sum(step * part for step, part in enumerate(self.share, start=1)))


def exit_costs(table: ExitTable, costs: Costs) -> NDArray[np.float64]:
    """(T,) what an image costs that leaves at each exit.

    Raises:
        ValueError: the table does not have this cost, or `costs` is not one of `COSTS`.
    """
    if costs not in COSTS:
        raise ValueError(f"costs must be one of {', '.join(COSTS)}, got {costs!r}")
    if costs == "inputs":
        return np.arange(1, table.num_exits + 1, dtype=np.float64)
    return table.costs(costs)


def anytime(table: ExitTable, system: str = "") -> AnytimeCurve:
    """Accuracy when all images leave at exit 1, ..., T."""
    count = table.num_images
    # One exit at a time: a table of millions of images is not to be copied as float64.
    gains = [
        paired_difference(table.correct[:, t], table.correct[:, t + 1])
        for t in range(table.num_exits - 1)
    ]
    return AnytimeCurve(
        system=system,
        num_images=count,
        macs=table.cost,
        milliseconds=table.milliseconds,
        top1=share(np.count_nonzero(table.correct, axis=0), count),
        top5=None if table.top5 is None else share(np.count_nonzero(table.top5, axis=0), count),
        gain=Estimate(
            np.array([gain.value for gain in gains], dtype=np.float64),
            np.array([gain.low for gain in gains], dtype=np.float64),
            np.array([gain.high for gain in gains], dtype=np.float64),
        ),
    )


def why_no_curve(table: ExitTable, costs: Costs = "macs") -> str | None:
    """Why `cross_fit` cannot be applied to `table`, in words for a reader; None if it can."""
    if table.num_exits < 2:
        return "there is only one exit, so there is nothing to decide"
    if table.num_images < 2 * FEWEST_IMAGES:
        return (
            f"thresholds are fitted on one half of the images and measured on the other, and "
            f"{plural(table.num_images, 'image')} "
            f"{'is' if table.num_images == 1 else 'are'} too few for that (at least "
            f"{2 * FEWEST_IMAGES})"
        )
    if costs == "macs" and table.cost is None:
        return "the table does not say how many multiply-adds the exits cost"
    if costs == "milliseconds" and table.milliseconds is None:
        return "the time of the exits has not been measured"
    return None


def cross_fit(
    table: ExitTable,
    method: Method = "search",
    *,
    system: str = "",
    costs: Costs = "macs",
    num_points: int = 40,
    seed: int = 0,
    splits: int | None = None,
) -> BudgetedCurve:
    """Budgeted batch classification (section 4.1) without measuring on what was fitted.

    The images are split at random into halves. Thresholds for each budget are fitted on one half
    and measured on the other, then the other way round, so that every image is measured once in
    each split.

    Args:
        method: "search" or "geometric", see `fit_thresholds`.
        costs: what a budget counts.
        num_points: P, at least 2. The budgets reach to where more buys no accuracy, for every
            method the same ones, and lie closer at the low end, where the curve is steeper.
        seed: of the splits.
        splits: how many; None: 1 for large tables, up to 10 for small ones.

    Raises:
        ValueError: the table cannot be fitted (see `why_no_curve`) or an argument is out of range.
    """
    reason = why_no_curve(table, costs)
    if reason is not None:
        raise ValueError(f"no budgeted curve: {reason}")
    if num_points < 2:
        raise ValueError(f"a curve needs at least 2 points, got num_points={num_points}")
    count, exits = table.num_images, table.num_exits
    if splits is None:
        splits = default_splits(table)
    if splits < 1:
        raise ValueError(f"splits must be at least 1, got {splits}")
    values = exit_costs(table, costs)
    steps = np.linspace(0, 1, num_points) ** 1.5
    budgets = values[0] + (_saturation(table, values) - values[0]) * steps
    weights = _trapezoid_weights(budgets)

    hits = np.zeros(num_points, dtype=np.int64)
    left = np.zeros((num_points, exits), dtype=np.int64)
    score = np.zeros(count, dtype=np.float32)
    for fitted, measured in halves(count, splits, seed):
        thresholds = fitted_thresholds(table, fitted[:MOST_FITTED], values, budgets, method)
        confidence, correct = table.confidence[measured], table.correct[measured]
        rows = np.arange(len(measured))
        for point in range(num_points):
            exit_index = apply_thresholds(confidence, thresholds[point])
            right = correct[rows, exit_index]
            hits[point] += np.count_nonzero(right)
            left[point] += np.bincount(exit_index, minlength=exits)
            score[measured] += np.float32(weights[point] / splits) * right
    shares = left / (count * splits)
    return BudgetedCurve(
        system=system,
        method=method,
        costs=costs,
        budget=budgets,
        cost=shares @ values,
        accuracy=share(hits / splits, count),
        share=shares,
        image_score=score,
        num_fitted=min(count // 2, MOST_FITTED),
        splits=splits,
        seed=seed,
    )


def fitted_thresholds(
    table: ExitTable,
    rows: NDArray[np.int64],
    values: NDArray[np.float64],
    budgets: NDArray[np.float64],
    method: Method,
) -> NDArray[np.float64]:
    """(P, T - 1) thresholds for each of the budgets, fitted on some rows of the table."""
    curve = pareto(
        table.confidence[rows], table.correct[rows], values, budgets=budgets, method=method
    )
    if curve.thresholds.shape != (len(budgets), table.num_exits - 1):
        raise RuntimeError(
            f"pareto gave thresholds of shape {curve.thresholds.shape} for {len(budgets)} budgets"
        )
    return np.asarray(curve.thresholds, dtype=np.float64)


def compare(first: BudgetedCurve, second: BudgetedCurve) -> Estimate:
    """Mean accuracy of `second` less that of `first` over the budgets, paired by image.

    Raises:
        ValueError: the curves are not of the same images and budgets.
    """
    if len(first.image_score) != len(second.image_score) or not np.array_equal(
        first.budget, second.budget
    ):
        raise ValueError("the curves are not of the same images and budgets")
    return paired_difference(first.image_score, second.image_score)


def operating_point(
    table: ExitTable,
    name: str,
    policy: ExitPolicy,
    *,
    held_out: bool | None = None,
) -> OperatingPoint:
    """What an exit policy does on a table, its temperatures and its answer rule included.

    Args:
        table: as it was collected.
        name: for tables and figures.
        policy: of as many exits; its temperatures must be on the table's grid.
        held_out: whether the table's images are other ones than those the policy was fitted on;
            None if it was not fitted.

    Raises:
        ValueError: the policy does not fit the table.
    """
    table = applied(table, policy)
    exit_index = apply_thresholds(table.confidence, policy.thresholds)
    rows = np.arange(table.num_images)
    shares = np.bincount(exit_index, minlength=table.num_exits) / table.num_images
    return OperatingPoint(
        name=name,
        policy=policy,
        accuracy=share(np.count_nonzero(table.correct[rows, exit_index]), table.num_images),
        top5=None if table.top5 is None else float(table.top5[rows, exit_index].mean()),
        macs=None if table.cost is None else float(shares @ table.cost),
        share=tuple(shares.tolist()),
        held_out=held_out,
    )


def cost_to_reach(curve: BudgetedCurve, accuracy: float) -> float | None:
    """The lowest mean cost at which the curve has at least `accuracy`; None if nowhere."""
    order = np.argsort(curve.cost, kind="stable")
    cost, reached = curve.cost[order], curve.accuracy.value[order]
    above = np.flatnonzero(reached >= accuracy)
    if len(above) == 0:
        return None
    first = int(above[0])
    if first == 0:
        return float(cost[0])
    before, after = reached[first - 1], reached[first]
    part = (accuracy - before) / (after - before)
    return float(cost[first - 1] + part * (cost[first] - cost[first - 1]))


def _saturation(table: ExitTable, values: NDArray[np.float64]) -> float:
    """The mean cost from which on more buys no accuracy, on the images themselves.

    It decides only how far a curve reaches, not where an image leaves. The search starts from the
    geometric rule, so what it does not find at a higher cost that does not find either.
    """
    rows = slice(None, None, -(-table.num_images // MOST_FITTED))
    found = pareto(
        table.confidence[rows], table.correct[rows], values, num_points=2, method="search"
    )
    highest = float(found.budget[-1])
    # Where the first exit is as good as any, the whole range shows just that.
    return highest if highest > values[0] else float(values[-1])


def _trapezoid_weights(positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights whose sum with values at `positions` is their mean over the range."""
    steps = np.diff(positions)
    weights = np.zeros(len(positions))
    weights[:-1] += steps / 2
    weights[1:] += steps / 2
    return np.asarray(weights / weights.sum())

"""Thresholds from a table of exits: the best accuracy within a budget, or the cheapest accuracy.

An image leaves at the first exit t with confidence > threshold t, at the last one otherwise. The
search itself is C++ (csrc/exit_policy); `anchornet_ext.reference.exit_policy` is its specification.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .. import _extension
from .quantities import short

Method = Literal["search", "geometric"]
METHODS: tuple[Method, ...] = ("search", "geometric")


class Fit(NamedTuple):
    """Thresholds, and how they do on the table that they were fitted on."""

    thresholds: NDArray[np.float64]
    """(T-1): -1.0 where every image leaves, 1.0 where none does, else midway between two
    neighbouring confidences of that exit."""
    accuracy: float
    """Share of the images whose answer is right at the exit they leave by."""
    cost: float
    """Mean over the images, in the unit of the costs given."""
    method: Method


class Curve(NamedTuple):
    """P policies by ascending cost; accuracy never falls along them."""

    thresholds: NDArray[np.float64]
    """(P, T-1), as in `Fit`."""
    accuracy: NDArray[np.float64]
    """(P)"""
    cost: NDArray[np.float64]
    """(P)"""
    budget: NDArray[np.float64]
    """(P): what each policy was fitted to; its cost is at most this."""


class _Table(NamedTuple):
    confidence: NDArray[np.float64]
    correct: NDArray[np.uint8]
    cost: NDArray[np.float64]


def fit_thresholds(
    confidence: ArrayLike,
    correct: ArrayLike,
    cost: ArrayLike,
    budget: float | None = None,
    *,
    accuracy: float | None = None,
    method: Method = "search",
) -> Fit:
    """Thresholds of high accuracy within a budget, or cheap ones that reach an accuracy.

    "geometric" is the rule of MSDNet, RANet and GFNet: the shares of all images that leave at the
    exits are a geometric progression; its one free number is set so that the cost is within the
    budget and as near to it as it gets.

    "search" starts there, or from the same rule over the first few exits or at a lower cost where
    that is better by more than chance explains (a late exit need not be worth its price). It then
    moves the thresholds in turn, each uphill given the others, on accuracy - lambda * cost, with
    lambda bisected to the budget. So that it does not chase the noise of single images, the
    objective is the mean over thresholds shifted at random by up to 5 % of the images, and moving
    far from the start has to pay. It may thus be less accurate on this table than noise would
    allow, and is meant for images that are not in it. Tables of at most 16 images, where there is
    nothing to smooth, are searched exhaustively if they have no more than 2^17 combinations.

    Neither depends on the order of the images, and nothing is random.

    Args:
        confidence: (N, T) float32 or float64 in [0, 1], any strides.
        correct: (N, T) bool, or integers 0 and 1: whether the answer at the exit is right.
        cost: (T), increasing: what an image costs that leaves at each exit, in any unit (MACs,
            milliseconds).
        budget: the most that an image may cost on average, in the same unit.
        accuracy: instead of a budget: the share of right answers to reach at the lowest cost.
        method: "search" or "geometric".

    Raises:
        TypeError: an array of another dtype; both or neither of budget and accuracy.
        ValueError: wrong shapes, values outside their range, no image, a budget below the cheapest
            exit's cost, an accuracy that the method does not reach (the message names the best
            that it does).
        ImportError: the native library is missing.
    """
    table = _checked(confidence, correct, cost)
    _check_method(method)
    if (budget is None) == (accuracy is None):
        raise TypeError(
            f"expected exactly one of budget and accuracy, got budget={budget!r} and "
            f"accuracy={accuracy!r}"
        )
    images = table.confidence.shape[0]
    if budget is not None:
        limit = _checked_budget(budget, table.cost)
        return _as_fit(_solver(table, method).within(limit), images, method)
    assert accuracy is not None
    wanted = _right_answers(accuracy, images)
    solver = _solver(table, method)
    found = solver.reaching(wanted)
    if found is None:
        best = solver.best_correct() / images
        raise ValueError(
            f"accuracy {accuracy:g} is out of reach: the best that thresholds found by the method "
            f"{method!r} reach on this table is {best:.6g}"
        )
    return _as_fit(found, images, method)


def pareto(
    confidence: ArrayLike,
    correct: ArrayLike,
    cost: ArrayLike,
    *,
    num_points: int | None = None,
    budgets: ArrayLike | None = None,
    method: Method = "search",
) -> Curve:
    """The best policies at many budgets: accuracy over cost.

    Where a larger budget finds nothing more accurate, the curve keeps the cheaper policy, so that
    accuracy never falls along it.

    Args:
        confidence, correct, cost, method: as for `fit_thresholds`.
        num_points: this many budgets, evenly spaced from the cheapest exit's cost to the cost from
            which on more buys no accuracy; 40 if neither this nor `budgets` is given.
        budgets: (P), instead of num_points; sorted if they are not.

    Returns:
        The curve, one row per budget.

    Raises:
        TypeError, ValueError, ImportError: as for `fit_thresholds`; both num_points and budgets.
    """
    table = _checked(confidence, correct, cost)
    _check_method(method)
    if num_points is not None and budgets is not None:
        raise TypeError(f"expected num_points or budgets, got both: {num_points!r}, {budgets!r}")
    if budgets is not None:
        limits = np.asarray(budgets, dtype=np.float64)
        if limits.ndim != 1 or limits.size == 0:
            raise ValueError(f"budgets must be (P) with P >= 1, got the shape {limits.shape}")
        limits = np.sort([_checked_budget(float(limit), table.cost) for limit in limits])
        solver = _solver(table, method)
    else:
        points = 40 if num_points is None else num_points
        if isinstance(points, bool) or not isinstance(points, (int, np.integer)):
            raise TypeError(f"num_points must be an int, got {points!r}")
        if points < 1:
            raise ValueError(f"num_points must be at least 1, got {points}")
        solver = _solver(table, method)
        limits = np.linspace(table.cost[0], solver.saturation(), int(points))
    found = solver.curve(limits.tolist())
    images, exits = table.confidence.shape
    return Curve(
        thresholds=np.array([point[0] for point in found], np.float64).reshape(
            len(found), exits - 1
        ),
        accuracy=np.array([point[1] for point in found], np.float64) / images,
        cost=np.array([point[2] for point in found], np.float64),
        budget=limits,
    )


def _solver(table: _Table, method: Method) -> Any:
    _extension.require()
    native = importlib.import_module("anchornet_ext._C")
    return native.ThresholdSolver(*table, method)


def _as_fit(found: tuple[list[float], int, float], images: int, method: Method) -> Fit:
    thresholds, right, mean_cost = found
    return Fit(np.array(thresholds, np.float64), right / images, mean_cost, method)


def _right_answers(accuracy: float, images: int) -> int:
    """The smallest number of right answers whose share is at least `accuracy`."""
    if not isinstance(accuracy, (int, float, np.floating, np.integer)):
        raise TypeError(f"accuracy must be a number, got {accuracy!r}")
    if not 0 <= accuracy <= 1:  # also NaN
        raise ValueError(f"accuracy must be in [0, 1], got {accuracy}")
    right = math.floor(accuracy * images)
    while right / images < accuracy:
        right += 1
    return right


def _checked_budget(budget: float, cost: NDArray[np.float64]) -> float:
    if not isinstance(budget, (int, float, np.floating, np.integer)):
        raise TypeError(f"budget must be a number, got {budget!r}")
    if math.isnan(budget):
        raise ValueError("budget is NaN")
    if budget < cost[0]:
        raise ValueError(
            f"budget {short(budget)} is below the cost of the cheapest exit, {short(cost[0])}: "
            "no thresholds can reach it"
        )
    return float(budget)


def _check_method(method: str) -> None:
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, got {method!r}")


def _checked(confidence: ArrayLike, correct: ArrayLike, cost: ArrayLike) -> _Table:
    """The table as contiguous arrays of the types that the solver takes."""
    sure, right, price = np.asarray(confidence), np.asarray(correct), np.asarray(cost)
    if sure.dtype.newbyteorder("=") not in (np.float32, np.float64):
        raise TypeError(f"confidence must be float32 or float64, got {sure.dtype}")
    if right.dtype != np.bool_ and not np.issubdtype(right.dtype, np.integer):
        raise TypeError(f"correct must be bool or integers 0 and 1, got {right.dtype}")
    if not (np.issubdtype(price.dtype, np.floating) or np.issubdtype(price.dtype, np.integer)):
        raise TypeError(f"cost must be numbers, got {price.dtype}")
    if sure.ndim != 2 or sure.shape[1] < 1:
        raise ValueError(f"confidence must be (N, T) with T >= 1, got the shape {sure.shape}")
    if sure.shape[0] < 1:
        raise ValueError(f"confidence has no image: its shape is {sure.shape}")
    if right.shape != sure.shape:
        raise ValueError(
            f"correct must have the shape of confidence, {sure.shape}, got {right.shape}"
        )
    if price.shape != sure.shape[1:]:
        raise ValueError(f"cost must be ({sure.shape[1]},), got the shape {price.shape}")
    if np.isnan(sure).any():
        row, column = np.argwhere(np.isnan(sure))[0]
        raise ValueError(f"confidence is NaN at image {row}, exit {column}")
    outside = (sure < 0) | (sure > 1)
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise ValueError(
            f"confidence must be in [0, 1], got {sure[row, column]} at image {row}, exit {column}"
        )
    if right.dtype != np.bool_ and ((right != 0) & (right != 1)).any():
        row, column = np.argwhere((right != 0) & (right != 1))[0]
        raise ValueError(
            f"correct must be 0 or 1, got {right[row, column]} at image {row}, exit {column}"
        )
    price = price.astype(np.float64)
    if not np.isfinite(price).all() or (price < 0).any() or (np.diff(price) <= 0).any():
        raise ValueError(f"cost must be finite, not negative and increasing, got {_listed(price)}")
    return _Table(
        np.ascontiguousarray(sure, np.float64),
        np.ascontiguousarray(right, np.uint8),
        np.ascontiguousarray(price),
    )


def _listed(values: Sequence[float] | NDArray[np.float64]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in values) + "]"

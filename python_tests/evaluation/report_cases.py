"""Exit tables whose answers are known, and curves made by hand, for the tests of the report."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from anchornet_ext.evaluation.curves import BudgetedCurve
from anchornet_ext.evaluation.intervals import share
from anchornet_ext.policy.exit_table import ExitTable


def graded_table(images: int, exits: int, seed: int = 0, **more: Any) -> ExitTable:
    """Images of graded difficulty, whose confidence is the probability of being right, which grows
    from exit to exit."""
    rng = np.random.default_rng(seed)
    ease = rng.random(images)
    confidence = np.stack([ease ** (1 / (1 + 0.5 * step)) for step in range(exits)], axis=1)
    correct = rng.random((images, exits)) < confidence
    values: dict[str, Any] = {
        "cost": 1e9 * np.cumsum(np.linspace(1, 0.5, exits)),
        "top5": correct | (rng.random((images, exits)) < 0.5),
    }
    return ExitTable(confidence.astype(np.float32), correct, **(values | more))


def table_of_correct(correct: ArrayLike, **more: Any) -> ExitTable:
    """A table of given correctness (N, T), of any confidence."""
    right = np.asarray(correct, bool)
    confidence = np.full(right.shape, 0.5, np.float32)
    values: dict[str, Any] = {"cost": 1e9 * np.arange(1.0, right.shape[1] + 1)}
    return ExitTable(confidence, right, **(values | more))


def curve_of(
    cost: ArrayLike, accuracy: ArrayLike, images: int = 1000, **changes: Any
) -> BudgetedCurve:
    """A curve through given points; costs in GMACs."""
    costs = 1e9 * np.asarray(cost, float)
    rates = np.asarray(accuracy, float)
    values: dict[str, Any] = {
        "system": "system",
        "method": "search",
        "costs": "macs",
        "budget": costs,
        "cost": costs,
        "accuracy": share(rates * images, images),
        "share": np.tile([0.5, 0.5], (len(costs), 1)),
        "image_score": np.full(images, rates.mean(), np.float32),
        "num_fitted": images // 2,
        "splits": 1,
        "seed": 0,
    }
    return BudgetedCurve(**(values | changes))

"""Stopping on all confidences so far: the policy that thresholds on the present one leave out.

Whether an image stops is an optimal stopping problem. With a price on cost, backward induction
gives for each exit the gain of going on. Here it is estimated on a grid of two ranks, that of the
present confidence and that of the largest one before (among images that plausibly come so far), as
a local mean under a Gaussian. An image stops where the gain is not positive.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from anchornet_ext.policy.exit_table import ExitTable

BINS = 24
#: Standard deviation of the Gaussian in bins. 1, 2 and 4 were tried; 2 is the best for this policy.
SMOOTHING = 2.0
#: An image surer than this at an earlier exit is not taken for one that comes so far.
SURE = 0.9
PRICES = np.geomspace(0.003, 0.3, 40)  # accuracy for the cost of one glance


@dataclass(frozen=True)
class _Gain:
    """Gain of going on at one exit, by bin of the confidence and of the largest one before."""

    present_edges: NDArray[np.float64]
    before_edges: NDArray[np.float64]
    gain: NDArray[np.float64]

    def __call__(
        self, present: NDArray[np.float32], before: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        row = np.searchsorted(self.present_edges, present)
        return self.gain[row, np.searchsorted(self.before_edges, before)]


def history_curve(fitting: ExitTable, measuring: ExitTable) -> NDArray[np.float64]:
    """(P, 2): cost and accuracy on `measuring` of policies fitted on `fitting`, one a price."""
    return np.array([_measure(_fit(fitting, price), measuring) for price in PRICES])


def _before(table: ExitTable, exit_index: int) -> NDArray[np.float32]:
    if exit_index == 0:
        return np.zeros(table.num_images, np.float32)
    return table.confidence[:, :exit_index].max(axis=1)


def _fit(table: ExitTable, price: float) -> list[_Gain]:
    assert table.cost is not None
    worth = table.correct - price * table.cost / table.cost[0]  # (N, T)
    ahead = worth[:, -1]
    gains: list[_Gain] = []
    for t in reversed(range(table.num_exits - 1)):
        present, before = table.confidence[:, t], _before(table, t)
        comes = before < SURE
        gain = _estimate(present, before, ahead - worth[:, t], comes)
        ahead = np.where(gain(present, before) > 0, ahead, worth[:, t])
        gains.insert(0, gain)
    return gains


def _estimate(
    present: NDArray[np.float32],
    before: NDArray[np.float32],
    gain: NDArray[np.float64],
    comes: NDArray[np.bool_],
) -> _Gain:
    steps = np.linspace(0, 1, BINS + 1)[1:-1]
    present_edges = np.quantile(present[comes], steps)
    before_edges = np.quantile(before[comes], steps)
    place = (
        np.searchsorted(present_edges, present[comes]),
        np.searchsorted(before_edges, before[comes]),
    )
    total, count = np.zeros((BINS, BINS)), np.zeros((BINS, BINS))
    np.add.at(total, place, gain[comes])
    np.add.at(count, place, 1.0)
    distance = np.arange(BINS)[:, None] - np.arange(BINS)
    kernel = np.exp(-0.5 * (distance / SMOOTHING) ** 2)
    mean = (kernel @ total @ kernel) / np.maximum(kernel @ count @ kernel, 1e-9)
    return _Gain(present_edges, before_edges, mean)


def _measure(gains: list[_Gain], table: ExitTable) -> tuple[float, float]:
    assert table.cost is not None
    exit_index = np.full(table.num_images, table.num_exits - 1)
    stays = np.ones(table.num_images, bool)
    for t, gain in enumerate(gains):
        stops = stays & (gain(table.confidence[:, t], _before(table, t)) <= 0)
        exit_index[stops] = t
        stays &= ~stops
    accuracy = table.correct[np.arange(table.num_images), exit_index].mean()
    return float(table.cost[exit_index].mean()), float(accuracy)

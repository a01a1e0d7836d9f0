"""The best thresholds for the very images they are measured on: what no honest fit can exceed.

For each price of cost, the thresholds are moved in turn to the exact best place given the others,
from several starts, until none moves. That finds a local optimum of each start and not provably
the best of all, so the ceiling is one to within what more starts would find.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from anchornet_ext.policy.exit_table import ExitTable
from anchornet_ext.policy.outcome import outcome

PRICES = np.geomspace(0.004, 0.3, 50)  # accuracy for the cost of one glance
STARTS = (0.3, 0.5, 0.7, 0.9)
SWEEPS = 6


def ceiling_curve(table: ExitTable) -> NDArray[np.float64]:
    """(P, 2): cost and accuracy, one row a price."""
    points = []
    for price in PRICES:
        found = (_climb(table, price, start) for start in STARTS)
        done = [outcome(table, thresholds) for thresholds in found]
        best = max(done, key=lambda point: point.accuracy - price * point.cost / table.cost[0])
        points.append((best.cost, best.accuracy))
    return np.array(points)


def _climb(table: ExitTable, price: float, start: float) -> NDArray[np.float64]:
    confidence = table.confidence
    worth = table.correct - price * table.cost / table.cost[0]  # (N, T)
    last = table.num_exits - 1
    thresholds = np.full(last, start)
    for _ in range(SWEEPS):
        before = thresholds.copy()
        for t in range(last):
            comes = (confidence[:, :t] <= thresholds[:t]).all(axis=1)
            ahead = worth[:, last]
            for later in range(last - 1, t, -1):
                ahead = np.where(confidence[:, later] > thresholds[later], worth[:, later], ahead)
            order = np.argsort(confidence[comes, t], kind="stable")
            # Entry k: the k least sure go on.
            gain = np.cumsum((ahead - worth[:, t])[comes][order])
            gain = np.concatenate([[0.0], gain])
            go_on = int(gain.argmax())
            least_sure = confidence[comes, t][order]
            thresholds[t] = -1.0 if go_on == 0 else least_sure[go_on - 1]
        if (before == thresholds).all():
            break
    return thresholds

"""Temperature scaling: by what to divide the logits of each exit so that its confidence is true."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .exit_table import ExitTable


def fit_temperatures(table: ExitTable) -> NDArray[np.float64]:
    """The temperature of each exit under which the labels are most probable.

    Of the table's grid, the one with the lowest mean -log p(label) (Guo et al., 2017, "On
    Calibration of Modern Neural Networks"); of equal ones that nearest to 1.

    Returns:
        (T,) temperatures of the grid, for `ExitTable.with_temperatures`.

    Raises:
        ValueError: the table has no temperature grid.
    """
    if table.temperatures is None or table.scaled_nll is None:
        raise ValueError(
            "this exit table has no temperature grid, so no temperatures can be fitted: collect it "
            "with `anchornet evaluate`, for a model with the criterion 'logits'"
        )
    # In float64: the mean over millions of images is a small difference of large sums.
    loss = table.scaled_nll.mean(axis=1, dtype=np.float64)  # (G, T)
    grid = table.temperatures
    by_distance_to_1 = np.argsort(np.abs(np.log(grid)), kind="stable")
    return np.asarray(grid[by_distance_to_1[loss[by_distance_to_1].argmin(axis=0)]])

"""The operating points of a report: thresholds at a few budgets, and policies that were given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from anchornet_ext.policy.calibration import (
    FEWEST_IMAGES,
    MOST_FITTED,
    Goal,
    Recipe,
    default_splits,
    fit_policy,
    halves,
    policy_outcome,
)
from anchornet_ext.policy.exit_policy import ExitPolicy
from anchornet_ext.policy.exit_table import ExitTable

from .curves import OperatingPoint, operating_point, why_no_curve
from .exit_values import TEMPERATURES
from .intervals import share
from .units import macs as macs_in_words

#: Where budgets lie that nobody has chosen, between the costs of the first and the last exit.
_SHARES = (0.1, 0.25, 0.5)


def default_budgets(macs_per_exit: Sequence[float]) -> tuple[float, ...]:
    """A few mean costs, of the cheaper half: there early exit gains the most."""
    first, last = macs_per_exit[0], macs_per_exit[-1]
    return tuple(first + part * (last - first) for part in _SHARES)


def decides_as(one: ExitPolicy, other: ExitPolicy) -> bool:
    """Whether two policies are the same, wherever they come from."""
    return replace(one, about={}) == replace(other, about={})


def why_no_points(table: ExitTable) -> str | None:
    """Why `fitted_point` cannot be applied to a table; None if it can."""
    # The rule for the answer is chosen on halves of a half.
    if table.num_images < 4 * FEWEST_IMAGES:
        return (
            f"{table.num_images} images are too few to fit operating points on a half of them "
            f"(at least {4 * FEWEST_IMAGES})"
        )
    return why_no_curve(table)


def fitted_point(table: ExitTable, budget: float, seed: int = 0) -> OperatingPoint:
    """What `anchornet calibrate --budget` makes of a budget, measured on images it has not seen.

    The policy is fitted on all images: it is the one to use. Accuracy, cost and exits are those of
    policies that the same recipe makes of a random half of the images, on the other half, both
    ways; small tables are split repeatedly. Both rules for the answer are tried; temperatures are
    not.

    Args:
        table: with costs.
        budget: mean multiply-adds of an image, at least those of the first exit.
        seed: of the halves.

    Raises:
        ValueError: the table has too few images or exits, or the budget is too low.
    """
    assert table.cost is not None
    recipe = Recipe(Goal(budget=budget), temperatures="off", seed=seed)
    policy = fit_policy(table, recipe)
    count, splits = table.num_images, default_splits(table)
    right = top5 = 0.0
    left = np.zeros(table.num_exits)
    for fitted, measured in halves(count, splits, seed):
        found = fit_policy(table.subset(fitted[:MOST_FITTED]), recipe)
        seen = policy_outcome(table.subset(measured), found)
        right += seen.accuracy * len(measured) / splits
        top5 += (seen.top5 or 0.0) * len(measured) / splits
        left += seen.share * len(measured) / splits
    return OperatingPoint(
        name=f"budget {macs_in_words(budget)}",
        policy=policy,
        accuracy=share(right, count),
        top5=None if table.top5 is None else top5 / count,
        macs=float(left / count @ table.cost),
        share=tuple((left / count).tolist()),
        held_out=True,
    )


def given_points(table: ExitTable, policies: Mapping[str, ExitPolicy]) -> list[OperatingPoint]:
    """What given policies do on the whole table.

    A policy that says it was fitted on images of this name is marked so: its accuracy here
    flatters.
    """
    return [
        operating_point(table, name, policy, held_out=_held_out(policy, table))
        for name, policy in policies.items()
    ]


def require_fits(policy: ExitPolicy, name: str, num_exits: int, why_no_grid: str | None) -> None:
    """Raises ValueError where a policy cannot be applied to the table that will be collected.

    Args:
        name: of the policy, for the message.
        num_exits: of the table.
        why_no_grid: why it will have no temperatures; None: it will have them.
    """
    try:
        policy.require_exits(num_exits)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    for value in policy.temperatures or ():
        if why_no_grid is not None:
            raise ValueError(f"{name} has temperatures, and {why_no_grid}")
        if not np.isclose(TEMPERATURES, value, rtol=1e-6, atol=0).any():
            raise ValueError(
                f"{name} has the temperature {value}, which is not on the table's grid: "
                f"{', '.join(f'{known:.4g}' for known in TEMPERATURES)}"
            )


def _held_out(policy: ExitPolicy, table: ExitTable) -> bool | None:
    """False where the policy was fitted on images of this name, else None: nobody can tell.

    Whether their number and the model's name agree does not matter: both change, with --limit or
    where the model is copied, and some of the images are still those that fitted the policy.
    """
    data = policy.about.get("data")
    return False if data is not None and data == table.metadata.get("data") else None

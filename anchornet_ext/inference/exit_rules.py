"""What decides when an image leaves and with which answer, gathered from a call and its model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anchornet_ext.policy.exit_policy import ExitPolicy, require_policy

if TYPE_CHECKING:
    from .two_stage import Criterion, TwoStageClassifier


@dataclass(frozen=True)
class ExitRules:
    """The decisions of Algorithm 1 for images of one size.

    Attributes:
        policy: temperatures and answer rule.
        thresholds: one for each exit that may run; the last one's is never compared.
        criterion: of which sums the confidence is taken.
    """

    policy: ExitPolicy
    thresholds: tuple[float, ...]
    criterion: Criterion

    @property
    def last(self) -> int:
        """The exit, from 1, where every image leaves that came so far."""
        return len(self.thresholds)

    @property
    def num_exits(self) -> int:
        """T of the model, which `last` may be below."""
        return self.policy.num_exits

    def can_leave(self, step: int) -> bool:
        """Whether an image can leave after input `step`, from 1: no confidence is above 1."""
        return step >= self.last or self.thresholds[step - 1] < 1

    def answer_step(self, confidences: Sequence[float]) -> int:
        """After which of its inputs, from 1, an image answers that leaves with these confidences.

        "surest": NaN is the least sure, and of equal confidences the later wins.
        """
        if self.policy.answer == "last":
            return len(confidences)
        known = [-math.inf if math.isnan(one) else one for one in confidences]
        return max(range(len(known)), key=lambda k: (known[k], k)) + 1


def exit_rules(
    classifier: TwoStageClassifier,
    num_patches: int,
    thresholds: Sequence[float] | None = None,
    exit_at: int | None = None,
    policy: ExitPolicy | None = None,
) -> ExitRules:
    """The rules that the arguments of `early_exit.classify` ask for.

    Args:
        num_patches: how many patches there are to look at.

    Raises:
        ValueError: as `early_exit.classify` does for these arguments.
    """
    policy = chosen_policy(classifier.num_exits, thresholds, exit_at, policy, classifier.policy)
    limits = (*policy.thresholds, math.inf) if exit_at is None else (math.inf,) * exit_at
    return ExitRules(policy, limits[: 1 + num_patches], classifier.criterion)


def chosen_policy(
    num_exits: int,
    thresholds: Sequence[float] | None = None,
    exit_at: int | None = None,
    policy: ExitPolicy | None = None,
    own: ExitPolicy | None = None,
) -> ExitPolicy:
    """The policy that the arguments of a `classify` ask for.

    Args:
        num_exits: T of the model.
        thresholds, exit_at, policy: the arguments; with `exit_at` its thresholds do not matter.
        own: the model's, where they name none; None: no image leaves early.

    Raises:
        ValueError: thresholds that are NaN or not T - 1, a policy for another number of exits,
            `exit_at` out of 1..T, or thresholds together with `exit_at` or with a policy.
        TypeError: `exit_at` is no integer, or `thresholds` or `policy` are something else.
    """
    if thresholds is not None:
        if exit_at is not None:
            raise ValueError("give thresholds or exit_at, not both")
        if policy is not None:
            raise ValueError("give thresholds or a policy, not both: a policy has its own")
        policy = ExitPolicy(listed(thresholds))
    require_integer_or_none("exit_at", exit_at)
    if exit_at is not None and not 1 <= exit_at <= num_exits:
        raise ValueError(f"exit_at must be 1 to {num_exits}, got {exit_at}")
    if policy is None:
        policy = own or ExitPolicy.never(num_exits)
    require_policy(policy, num_exits)
    return policy


def listed(thresholds: Sequence[float]) -> tuple[float, ...]:
    """
    Raises:
        TypeError: `thresholds`, one number for all exits say, is no sequence.
    """
    try:
        return tuple(thresholds)
    except TypeError:
        raise TypeError(
            "thresholds must be a sequence, a number for each exit but the last, "
            f"got {thresholds!r}"
        ) from None


def require_integer_or_none(name: str, value: object) -> None:
    """
    Raises:
        TypeError: `value`, of the argument `name`, is neither an integer nor None.
    """
    if value is not None and not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {value!r}")

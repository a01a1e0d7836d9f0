"""Checks that the configurations of networks share."""

from __future__ import annotations

import math
from collections.abc import Sequence

#: What a network's first layers are made for: CIFAR's images, or ImageNet's.
STEMS = ("small", "large")
#: How long its blocks are: alike, or each longer than the one before.
SPACINGS = ("even", "growing")


def require(holds: bool, name: str, wanted: str, value: object) -> None:
    """Raises ValueError unless it holds, naming the field and its value."""
    if not holds:
        raise ValueError(f"{name} must be {wanted}, not {value}")


def require_choice(value: str, name: str, choices: Sequence[str]) -> None:
    """Raises ValueError unless `value` is one of `choices`."""
    require(value in choices, name, f"one of {', '.join(choices)}", repr(value))


def require_factors(values: Sequence[int], name: str, length: int | None = None) -> tuple[int, ...]:
    """`values` as a tuple of `length` (None: any but 0) numbers from 1 on, or ValueError."""
    factors = tuple(values)
    wanted = "at least one number" if length is None else f"{length} numbers"
    right = len(factors) > 0 if length is None else len(factors) == length
    require(right and all(v >= 1 for v in factors), name, f"{wanted} from 1 on", factors)
    return factors


def kept_channels(channels: int, reduction: float) -> int:
    """How many of `channels` a transition keeps, or ValueError where that is none."""
    kept = math.floor(reduction * channels)
    require(kept >= 1, "reduction", f"at least 1 / {channels}, the channels there are", reduction)
    return kept

"""Several patches of an image in one pass of the focus network.

A pass over one patch takes about as long to read the weights as to compute with them, so that of a
single image four patches in a pass take far less than four times as long as one. The decisions are
made in the same order and with the same outcome; what was computed beyond an image's exit is lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from .exit_rules import ExitRules

#: How many patches of an image a pass sees; see `early_exit.classify`.
Lookahead = int | Sequence[int] | Literal["free"]

#: Patches of a pass from which on more of them are hardly any faster.
FULL_PASS = 32


def checked_lookahead(lookahead: Lookahead) -> tuple[int, ...]:
    """The sizes of an image's passes in their order; the last one holds for all that follow.

    None at all for "free".

    Raises:
        ValueError: no size, or one below 1.
    """
    if lookahead == "free":
        return ()
    if type(lookahead) is int and lookahead >= 1:
        return (lookahead,)
    sizes: tuple[object, ...] = (
        tuple(lookahead) if isinstance(lookahead, Sequence) else (lookahead,)
    )
    whole = tuple(size for size in sizes if isinstance(size, int) and size >= 1)
    if not sizes or len(whole) < len(sizes):
        raise ValueError(
            f'lookahead must be patches in a pass, at least 1, or "free", got {lookahead!r}'
        )
    return tuple(int(size) for size in whole)  # True is 1


def patches_together(
    rules: ExitRules, step: int, num_images: int, sizes: Sequence[int], turn: int
) -> int:
    """Of how many inputs, from `step` on, the next pass sees the patches.

    Args:
        rules: when images leave.
        step: the next input, from 2.
        num_images: how many are still there, at least 1.
        sizes: of `checked_lookahead`. Where there are none, a small pass sees all that every image
            needs in any case, because none can leave between them.
        turn: how many passes of patches were before, from 0.
    """
    if sizes:
        return min(sizes[min(turn, len(sizes) - 1)], rules.last - step + 1)
    size = 1
    while not rules.can_leave(step + size - 1) and (size + 1) * num_images <= FULL_PASS:
        size += 1
    return size


def best_lookahead(pass_seconds: Mapping[int, float], exit_shares: Sequence[float]) -> list[int]:
    """The sizes of passes with which a single image takes the least time on average.

    Args:
        pass_seconds: size -> seconds of a pass of the focus network over so many patches of an
            image; sizes that are not there are not used. 1 must be.
        exit_shares: of all images, how many leave at exits 1, ..., T; T at least 2.

    Returns:
        The sizes, T - 1 in all; for `classify(lookahead=...)`.

    Raises:
        ValueError: pass_seconds lacks 1, a number is negative or NaN, or there are no exits beyond
            the first.
    """
    numbers = (*pass_seconds.values(), *exit_shares)
    if 1 not in pass_seconds or not all(number >= 0 for number in numbers):
        raise ValueError(
            "expected seconds of passes, that of 1 patch among them, and shares, none negative; "
            f"got {dict(pass_seconds)} and {list(exit_shares)}"
        )
    patches = len(exit_shares) - 1
    if patches < 1:
        raise ValueError(f"exit_shares must be of at least 2 exits, got {len(exit_shares)}")
    # From the last patch backwards: the seconds that are ahead of all images, best[patches] = 0.
    best = [0.0] * (patches + 1)
    first = [1] * patches
    for begin in reversed(range(patches)):
        needing = sum(exit_shares[begin + 1 :])
        choices = {
            size: needing * seconds + best[begin + size]
            for size, seconds in sorted(pass_seconds.items())
            if 1 <= size <= patches - begin
        }
        first[begin] = min(choices, key=lambda size: choices[size])
        best[begin] = choices[first[begin]]
    sizes = []
    begin = 0
    while begin < patches:
        sizes.append(first[begin])
        begin += first[begin]
    return sizes

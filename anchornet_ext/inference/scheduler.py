"""Which pass runs next, and on which images, when images at different steps share batches.

Nothing here computes anything, or knows of tensors: an image is the number of the slot it is in.

Every image goes through the glance; those that stay through AnchorNet; and those through the focus
network, once or more often. Each of the three has a queue of the images that wait for it. A pass
runs when its queue has a whole batch. With 3 (b - 1) + 1 slots for batches of b there always is one
such queue once all slots are taken, so that only two things make a pass run incomplete: the end of
the stream, and an image that has been waiting while too many others overtook it.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Collection
from typing import NamedTuple


class Pass(str, enum.Enum):
    """The three passes of Algorithm 1, in the order in which an image meets them.

    Strings, whose hashes are the interpreter's own: there is a look-up for every image in a pass.
    """

    GLANCE = "glance"
    LOCALISE = "localise"
    FOCUS = "focus"


class Work(NamedTuple):
    """One pass over some images."""

    kind: Pass
    slots: tuple[int, ...]
    steps: tuple[int, ...]
    """How many inputs each image has seen after this pass; AnchorNet's is none."""


class Scheduler:
    """Hands out passes over the images in `slots` slots.

    Use: while `room`, `admit` images; `next` says what to run; `finish` tells it who stays. Several
    passes may be under way at a time.

    Args:
        slots: how many images can be in here, at least `batch`.
        batch: b, the images of a complete pass, at least 1.
        last: the exit, from 1, where every image leaves.
        patience: by how many later arrivals the oldest image may be overtaken; then its passes run
            next, complete or not. Without a bound, an image whose queue fills slowly would hold
            back its own result, and all later ones that are to come out in order.

    Raises:
        ValueError: a number out of its range.
    """

    def __init__(self, slots: int, batch: int, last: int, patience: int) -> None:
        for name, value in (("batch", batch), ("last", last), ("patience", patience)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if slots < batch:
            raise ValueError(f"slots must be at least the batch of {batch}, got {slots}")
        self._batch = batch
        self._last = last
        self._patience = patience
        self._free = list(range(slots - 1, -1, -1))  # the lowest is taken first
        self._waiting: dict[Pass, deque[int]] = {kind: deque() for kind in Pass}
        self._step = [0] * slots  # inputs seen, of those that have been through the glance
        self._arrival: dict[int, int] = {}  # by slot, the oldest first
        self._arrivals = 0

    @property
    def room(self) -> bool:
        """Whether an image can be admitted now."""
        return bool(self._free) and not self._impatient

    @property
    def admissible(self) -> int:
        """How many images can be admitted before `next` could have anything new to say."""
        until_impatient = self._patience + 1 - (self._arrivals - self._oldest)
        until_full = self._batch - len(self._waiting[Pass.GLANCE])
        return max(0, min(len(self._free), until_full, until_impatient))

    def admit(self, count: int) -> list[int]:
        """Takes in new images; returns a slot for each, which is its own until it leaves.

        Raises:
            RuntimeError: there is no room for so many; see `admissible`.
        """
        if count > self.admissible:
            raise RuntimeError(f"there is no room for {count} images, but for {self.admissible}")
        kept = len(self._free) - count
        slots = self._free[kept:]
        del self._free[kept:]
        slots.reverse()
        self._arrival.update(zip(slots, range(self._arrivals, self._arrivals + count), strict=True))
        self._arrivals += count
        self._waiting[Pass.GLANCE].extend(slots)
        return slots

    def pass_by(self) -> None:
        """Counts an arrival that needs no slot, as it is no image."""
        self._arrivals += 1

    def next(self, more: bool) -> Work | None:
        """The next pass to run, or None if more images should be admitted or a pass be finished.

        Args:
            more: whether there may be images to admit. Without, incomplete passes run.
        """
        kind = self._choose(more)
        return None if kind is None else self._take(kind, more)

    def finish(self, work: Work, stay: Collection[int] = ()) -> list[int]:
        """Notes that a pass is done.

        Args:
            work: what `next` returned, once.
            stay: the slots whose images were not sure enough to leave. At the last exit and after
                AnchorNet, this is not asked.

        Returns:
            The slots of the images that have left, which are free now.
        """
        if work.kind is Pass.LOCALISE:
            self._waiting[Pass.FOCUS].extend(work.slots)
            return []
        queue = self._waiting[Pass.LOCALISE if work.kind is Pass.GLANCE else Pass.FOCUS]
        left: list[int] = []
        for slot, step in zip(work.slots, work.steps, strict=True):
            if step < self._last and slot in stay:
                self._step[slot] = step
                queue.append(slot)
            else:
                left.append(slot)
                del self._arrival[slot]
        self._free.extend(left)
        return left

    @property
    def _oldest(self) -> int:
        """The arrival that has been here the longest; the next one, where none is here."""
        return next(iter(self._arrival.values()), self._arrivals)

    @property
    def _impatient(self) -> bool:
        return self._arrivals - self._oldest > self._patience

    def _choose(self, more: bool) -> Pass | None:
        sizes = {kind: len(queue) for kind, queue in self._waiting.items()}
        others_under_way = sum(sizes.values()) < len(self._arrival)
        if not more:
            # In the order of the passes, so that the last images meet in as few as possible.
            kind = next((kind for kind in Pass if sizes[kind]), None)
            can_wait = kind is not None and sizes[kind] < self._batch and others_under_way
            return None if can_wait else kind
        if self._impatient:
            oldest = next(iter(self._arrival))
            for kind, queue in self._waiting.items():
                if oldest in queue:
                    return kind
        for kind in reversed(Pass):  # those that make room first
            if sizes[kind] >= self._batch:
                return kind
        if self.room or others_under_way:
            return None  # there may be a complete pass when they come
        return max(reversed(Pass), key=lambda kind: sizes[kind])  # too few slots for complete ones

    def _take(self, kind: Pass, more: bool) -> Work:
        queue = self._waiting[kind]
        if kind is Pass.FOCUS and not more:
            # Those with the most inputs ahead of them; how many they need decides when it all ends.
            queue = deque(sorted(queue, key=lambda slot: self._step[slot]))
            self._waiting[kind] = queue
        count = min(self._batch, len(queue))
        slots = tuple([queue.popleft() for _ in range(count)])
        if kind is Pass.GLANCE:
            return Work(kind, slots, (1,) * count)
        new_inputs = 0 if kind is Pass.LOCALISE else 1
        return Work(kind, slots, tuple([self._step[slot] + new_inputs for slot in slots]))

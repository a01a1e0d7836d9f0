"""What a stream's host knows of the images under way, in one row for each slot.

Passes write whole batches into it, and images that leave together are taken out together, so that
next to nothing is done for each image by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .exit_rules import ExitRules
from .stream_state import Decided, Localised


@dataclass(frozen=True, slots=True, eq=False)
class Leaving:
    """What was found of A images that left in one pass: lists and tensors with an entry for each.

    Attributes:
        steps: how many inputs they used.
        confidence, label: after each of these inputs.
        top_left: (row, column) of all patches that AnchorNet proposed; empty without it.
        anchor_label: None where AnchorNet did not see the image.
        activation_map: (h, w) each; None likewise.
        probabilities: (A, n).
        rules: by which they left.
        macs: what leaving at exit 1, ..., T costs.
        full_macs: what leaving at the last exit that there is costs.
        dtype: of confidences.
    """

    steps: Sequence[int]
    confidence: Sequence[Sequence[float]]
    label: Sequence[Sequence[int]]
    top_left: Sequence[Sequence[Sequence[int]]]
    anchor_label: Sequence[int | None]
    activation_map: Sequence[Tensor | None]
    probabilities: Tensor
    rules: ExitRules
    macs: Sequence[int]
    full_macs: int
    dtype: torch.dtype


class ImageClassification:
    """What `classification.Classification` says of one image; n classes, T exits, on the CPU.

    A place among the images that left with it. What is asked for is made then: five tensors for
    each image that nobody looks at would take a good part of a small network's time.
    """

    __slots__ = ("_leaving", "_place")

    def __init__(self, leaving: Leaving, place: int) -> None:
        self._leaving = leaving
        self._place = place

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(label={self.label}, exit_step={self.exit_step}, "
            f"answer_step={self.answer_step}, confidence={self.confidence.tolist()})"
        )

    @property
    def label(self) -> int:
        """The predicted class: that of `answer_step`."""
        return self._leaving.label[self._place][self.answer_step - 1]

    @property
    def probabilities(self) -> Tensor:
        """(n,) after input `answer_step`."""
        return self._leaving.probabilities[self._place]

    @property
    def exit_step(self) -> int:
        """The number of inputs used, 1 (the glance alone) to T."""
        return self._leaving.steps[self._place]

    @property
    def answer_step(self) -> int:
        """The input after which the answer was found."""
        return self._leaving.rules.answer_step(self._leaving.confidence[self._place])

    @property
    def confidence(self) -> Tensor:
        """(T,), the largest probability after each input, NaN where it was not reached."""
        known = self._leaving.confidence[self._place]
        return torch.tensor([*known, *[math.nan] * self._unused], dtype=self._leaving.dtype)

    @property
    def step_label(self) -> Tensor:
        """(T,) int64, the class predicted after each input, -1 where not reached."""
        return torch.tensor([*self._leaving.label[self._place], *[-1] * self._unused])

    @property
    def top_left(self) -> Tensor:
        """(T - 1, 2) int64, (row, column) in pixels of the patch of each step after the glance.

        -1 where it was not reached.
        """
        used = self._leaving.top_left[self._place][: self.exit_step - 1]
        return torch.tensor([*used, *[(-1, -1)] * self._unused], dtype=torch.int64).view(-1, 2)

    @property
    def anchor_label(self) -> int | None:
        """The class whose activation map chose the patches.

        None if AnchorNet did not see the image, as it left at the glance.
        """
        return self._leaving.anchor_label[self._place]

    @property
    def activation_map(self) -> Tensor | None:
        """(h, w), AnchorNet's map of that class; None likewise."""
        return self._leaving.activation_map[self._place]

    @property
    def macs(self) -> int:
        """Multiply-adds that the image cost."""
        return self._leaving.macs[self.exit_step - 1]

    @property
    def full_macs(self) -> int:
        """Multiply-adds of an image of this size that goes to the last exit."""
        return self._leaving.full_macs

    @property
    def _unused(self) -> int:
        return self._leaving.rules.num_exits - self.exit_step


@dataclass(frozen=True, slots=True)
class StreamResult:
    """One for each image that came in.

    Attributes:
        position: its number in the input, from 0.
        key: what came with the image, or None; with `load`, what was loaded.
        found: the classification, or None if there is an error.
        error: why the image could not be classified, or None.
    """

    position: int
    key: Any
    found: ImageClassification | None
    error: Exception | None


class Ledger:
    """Where the images came from, and what was found of them so far.

    Lists, since after a network's pass hardly anything is in a cache but the interpreter: writing a
    few dozen numbers into a tensor, or an array, takes five times as long as it does in a loop.

    Args:
        slots: S, images that can be under way.
        rules: when they leave.
        map_size: (h, w) of an activation map.
        macs: what leaving at exit 1, ..., T costs.
        full_macs: what leaving at the last exit that there is costs.
        dtype: of confidences, float32 or float64.
    """

    def __init__(
        self,
        slots: int,
        rules: ExitRules,
        map_size: tuple[int, int],
        macs: Sequence[int],
        full_macs: int,
        dtype: torch.dtype,
    ) -> None:
        self._rules = rules
        self._macs = macs
        self._full_macs = full_macs
        self._dtype = dtype
        self._position = [0] * slots
        self._key: list[Any] = [None] * slots
        # After each input so far; and, where AnchorNet was asked, (row, column) of its patches.
        self._confidence: list[list[float]] = [[] for _ in range(slots)]
        self._label: list[list[int]] = [[] for _ in range(slots)]
        self._top_left: list[list[list[int]]] = [[] for _ in range(slots)]
        self._anchor_label: list[int | None] = [None] * slots
        self._map: Tensor | None = None  # (S, h, w), of the type that AnchorNet gives
        self._map_shape = (slots, *map_size)

    def begin(self, slots: Sequence[int], positions: Sequence[int], keys: Sequence[Any]) -> None:
        """Images come into `slots`, with these numbers in the input and these keys."""
        for slot, position, key in zip(slots, positions, keys, strict=True):
            self._position[slot] = position
            self._key[slot] = key
            self._confidence[slot], self._label[slot], self._top_left[slot] = [], [], []

    def note_answers(self, slots: Sequence[int], decided: Decided) -> None:
        """What the images in `slots` were taken for after one input more."""
        # A batch that was filled up has more rows than images.
        found = zip(slots, decided.confidence.tolist(), decided.label.tolist(), strict=False)
        for slot, confidence, label in found:
            self._confidence[slot].append(confidence)
            self._label[slot].append(label)

    # The map's rows are written to in every pass, which may run in inference mode or not.
    @torch.inference_mode(False)
    def note_places(self, slots: Sequence[int], localised: Localised) -> None:
        """Where AnchorNet says to look in the images in `slots`."""
        if self._map is None:
            self._map = torch.empty(self._map_shape, dtype=localised.activation_map.dtype)
        self._map[torch.tensor(slots)] = localised.activation_map[: len(slots)]
        found = zip(
            slots, localised.anchor_label.tolist(), localised.top_left.tolist(), strict=False
        )
        for slot, label, top_left in found:
            self._anchor_label[slot], self._top_left[slot] = label, top_left

    def take(
        self, slots: Sequence[int], steps: Sequence[int], probabilities: Tensor
    ) -> list[StreamResult]:
        """The results of images that leave after `steps` inputs.

        Args:
            probabilities: (A, n), not used by anything else: the results share it.
        """
        anchor_label, activation_map = self._looked_at(slots, steps)
        leaving = Leaving(
            steps,
            [self._confidence[slot] for slot in slots],
            [self._label[slot] for slot in slots],
            [self._top_left[slot] for slot in slots],
            anchor_label,
            activation_map,
            probabilities,
            self._rules,
            self._macs,
            self._full_macs,
            self._dtype,
        )
        results = []
        for place, slot in enumerate(slots):
            found = ImageClassification(leaving, place)
            results.append(StreamResult(self._position[slot], self._key[slot], found, None))
            self._key[slot] = None  # it may be large
        return results

    def _looked_at(
        self, slots: Sequence[int], steps: Sequence[int]
    ) -> tuple[list[int | None], list[Tensor | None]]:
        """The classes and maps of AnchorNet; None of images that left at the glance."""
        places = [place for place, step in enumerate(steps) if step > 1]
        labels: list[int | None] = [None] * len(slots)
        maps: list[Tensor | None] = [None] * len(slots)
        if places:
            assert self._map is not None
            own = self._map.index_select(0, torch.tensor([slots[place] for place in places]))
            for place, activation_map in zip(places, own.unbind(), strict=True):
                labels[place] = self._anchor_label[slots[place]]
                maps[place] = activation_map
        return labels, maps

"""What a stream's host knows of the images under way, in one row for each slot.

Passes write whole batches into it, and images that leave together are taken out together, so that
next to nothing is done for each image by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .exit_rules import ExitRules
from .stream_state import Decided, Localised


@dataclass(frozen=True, slots=True)
class ImageClassification:
    """What `early_exit.Classification` says of one image; n classes, T exits, on the CPU.

    Attributes:
        label: the predicted class: that of `answer_step`.
        probabilities: (n,) after input `answer_step`.
        exit_step: the number of inputs used, 1 (the glance alone) to T.
        answer_step: the input after which the answer was found.
        confidence: (T,), the largest probability after each input, NaN where it was not reached.
        step_label: (T,) int64, the class predicted after each input, -1 where not reached.
        top_left: (T - 1, 2) int64, (row, column) in pixels of the patch of each step after the
            glance, -1 where it was not reached.
        anchor_label: the class whose activation map chose the patches; None if AnchorNet did not
            see the image, as it left at the glance.
        activation_map: (h, w), AnchorNet's map of that class; None likewise.
        macs: multiply-adds that the image cost.
        full_macs: multiply-adds of an image of this size that goes to the last exit.
    """

    label: int
    probabilities: Tensor
    exit_step: int
    answer_step: int
    confidence: Tensor
    step_label: Tensor
    top_left: Tensor
    anchor_label: int | None
    activation_map: Tensor | None
    macs: int
    full_macs: int


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
        self._dtype = np.float64 if dtype == torch.float64 else np.float32
        self._position = [0] * slots
        self._key: list[Any] = [None] * slots
        # After each input so far; and, where AnchorNet was asked, (row, column) of its patches.
        self._confidence: list[list[float]] = [[] for _ in range(slots)]
        self._label: list[list[int]] = [[] for _ in range(slots)]
        self._top_left: list[list[list[int]]] = [[] for _ in range(slots)]
        self._anchor_label: list[int | None] = [None] * slots
        self._map: Tensor | None = None  # (S, h, w), of the type that AnchorNet gives
        self._map_shape = (slots, *map_size)

    def begin(self, slots: Sequence[int], position: int, keys: Sequence[Any]) -> None:
        """Images come into `slots`, with these keys, that of the first being number `position`."""
        for number, (slot, key) in enumerate(zip(slots, keys, strict=True), start=position):
            self._position[slot] = number
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
        answers: Sequence[int] = steps
        if self._rules.policy.answer == "surest":
            answers = [self._rules.answer_step(self._confidence[slot]) for slot in slots]
        anchor_label, activation_map = self._looked_at(slots, steps)
        confidence, label, top_left = self._tables(slots, steps)
        found = map(
            ImageClassification,
            (self._label[slot][answer - 1] for slot, answer in zip(slots, answers, strict=True)),
            probabilities.unbind(),
            steps,
            answers,
            confidence.unbind(),
            label.unbind(),
            top_left.unbind(),
            anchor_label,
            activation_map,
            (self._macs[step - 1] for step in steps),
            (self._full_macs for _ in steps),
        )
        results = [
            StreamResult(self._position[slot], self._key[slot], one, None)
            for slot, one in zip(slots, found, strict=True)
        ]
        for slot in slots:
            self._key[slot] = None  # it may be large
        return results

    def _tables(self, slots: Sequence[int], steps: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """What the results say of each input: (A, T), (A, T) and (A, T - 1, 2)."""
        count, exits = len(slots), self._rules.num_exits
        confidence: list[float] = []
        numbers: list[int] = []  # of an image, its labels and then its places
        for slot, step in zip(slots, steps, strict=True):
            unused = exits - step
            confidence += self._confidence[slot]
            confidence += [math.nan] * unused
            numbers += self._label[slot]
            numbers += [-1] * unused
            for place in self._top_left[slot][: step - 1]:
                numbers += place
            numbers += [-1] * (2 * unused)
        # Through numpy, which reads a list in half of torch's time.
        of_all = torch.from_numpy(np.array(numbers, dtype=np.int64).reshape(count, 3 * exits - 2))
        label, top_left = of_all.tensor_split((exits,), dim=1)
        return (
            torch.from_numpy(np.array(confidence, dtype=self._dtype).reshape(count, exits)),
            label,
            top_left.view(count, exits - 1, 2),
        )

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

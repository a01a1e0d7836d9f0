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

    Args:
        slots: S, images that can be under way.
        rules: when they leave.
        map_size: (h, w) of an activation map.
        macs: what leaving at exit 1, ..., T costs.
        full_macs: what leaving at the last exit that there is costs.
        dtype: of confidences.
    """

    # The rows are written to in every pass, which may run in inference mode or not.
    @torch.inference_mode(False)
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
        self._position = [0] * slots
        self._key: list[Any] = [None] * slots
        self._exits = exits = rules.num_exits
        self._confidence = torch.full((slots, exits), math.nan, dtype=dtype)
        self._label = torch.full((slots, exits), -1)
        self._top_left = torch.full((slots, exits - 1, 2), -1)
        self._anchor_label = torch.full((slots,), -1)
        self._map: Tensor | None = None  # (S, h, w), of the type that AnchorNet gives
        self._map_shape = (slots, *map_size)

    def begin(self, slots: Sequence[int], position: int, keys: Sequence[Any]) -> None:
        """Images come into `slots`, with these keys, that of the first being number `position`."""
        for number, (slot, key) in enumerate(zip(slots, keys, strict=True), start=position):
            self._position[slot] = number
            self._key[slot] = key

    def note_answers(self, slots: Sequence[int], steps: Sequence[int], decided: Decided) -> None:
        """What the images in `slots` were taken for, which have seen `steps` inputs by now."""
        # A batch that was filled up has more rows than images.
        count = len(slots)
        if steps[0] == 1:  # the glance's, of all of them: other images were here before
            rows = torch.tensor(slots)
            self._confidence.index_fill_(0, rows, math.nan)
            self._label.index_fill_(0, rows, -1)
        # One index of the flat table: with two, torch takes three times as long.
        places = [slot * self._exits + step - 1 for slot, step in zip(slots, steps, strict=True)]
        index = torch.tensor(places)
        self._confidence.view(-1).index_copy_(
            0, index, decided.confidence[:count].to(self._confidence.dtype)
        )
        self._label.view(-1).index_copy_(0, index, decided.label[:count])

    @torch.inference_mode(False)
    def note_places(self, slots: Sequence[int], localised: Localised) -> None:
        """Where AnchorNet says to look in the images in `slots`."""
        rows, count = torch.tensor(slots), len(slots)
        if self._map is None:
            self._map = torch.empty(self._map_shape, dtype=localised.activation_map.dtype)
        self._map[rows] = localised.activation_map[:count]
        self._anchor_label[rows] = localised.anchor_label[:count]
        self._top_left[rows, : localised.top_left.shape[1]] = localised.top_left[:count]

    def take(
        self, slots: Sequence[int], steps: Sequence[int], probabilities: Tensor
    ) -> list[StreamResult]:
        """The results of images that leave after `steps` inputs.

        Args:
            probabilities: (A, n), not used by anything else: the results share it.
        """
        rows = torch.tensor(slots, dtype=torch.int64)
        confidence = self._confidence.index_select(0, rows)
        label = self._label.index_select(0, rows)
        top_left = self._top_left.index_select(0, rows)
        inputs = torch.tensor(steps, dtype=torch.int64)
        unused = torch.arange(1, self._rules.num_exits) >= inputs[:, None]
        top_left.masked_fill_(unused[:, :, None], -1)
        answers: Sequence[int] = steps
        if self._rules.policy.answer == "surest":
            known = zip(confidence.tolist(), steps, strict=True)
            answers = [self._rules.answer_step(one[:step]) for one, step in known]
        anchor_label, activation_map = self._looked_at(slots, steps)
        found = map(
            ImageClassification,
            (of_one[answer - 1] for of_one, answer in zip(label.tolist(), answers, strict=True)),
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

    def _looked_at(
        self, slots: Sequence[int], steps: Sequence[int]
    ) -> tuple[list[int | None], list[Tensor | None]]:
        """The classes and maps of AnchorNet; None of images that left at the glance."""
        places = [place for place, step in enumerate(steps) if step > 1]
        labels: list[int | None] = [None] * len(slots)
        maps: list[Tensor | None] = [None] * len(slots)
        if places:
            assert self._map is not None
            rows = torch.tensor([slots[place] for place in places])
            own = zip(
                self._anchor_label[rows].tolist(), self._map.index_select(0, rows), strict=True
            )
            for place, (label, activation_map) in zip(places, own, strict=True):
                labels[place], maps[place] = label, activation_map
        return labels, maps

"""What `classify` found, made when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .exit_state import ExitState, to_device
from .passes import Places


@dataclass(frozen=True)
class Classification:
    """What `classify` found for B images, n classes, T exits; all on the images' device.

    Each attribute is made when it is first asked for: a dozen tensors that nobody looks at would
    take a tenth of a small network's time for an image.

    Attributes:
        label: (B,) int64, index of the predicted class: that of `answer_step`.
        probabilities: (B, n) after input `answer_step`: softmax of the summed logits (divided by
            that exit's temperature), or under the criterion "probabilities" the mean of the
            probabilities of the inputs so far.
        exit_step: (B,) int64, the number of inputs used, 1 (the glance alone) to T.
        answer_step: (B,) int64, the input after which the answer was found: `exit_step`, unless the
            policy's answer is "surest".
        confidence: (B, T), the largest probability after each input, NaN where it was not reached.
        step_label: (B, T) int64, the class predicted after each input, -1 where not reached.
        top_left: (B, T - 1, 2) int64, (row, column) in pixels of the patch of each step after the
            glance, -1 where it was not reached.
        anchor_label: (B,) int64, the class whose activation map chose the patches; -1 for images
            that left at the glance.
        activation_map: (A, h, w), AnchorNet's map of that class, in the order of `anchor_ran`.
        anchor_ran: (A,) int64, which images AnchorNet saw, ascending.
        macs: (B,) int64, multiply-adds that each image cost; with `lookahead` those of patches
            beyond its exit are among them.
        full_macs: multiply-adds of an image of this size that goes to the last exit.
    """

    label: Tensor
    probabilities: Tensor
    exit_step: Tensor
    answer_step: Tensor
    confidence: Tensor
    step_label: Tensor
    top_left: Tensor
    anchor_label: Tensor
    activation_map: Tensor
    anchor_ran: Tensor
    macs: Tensor
    full_macs: int

    @classmethod
    def of(cls, findings: Findings) -> Classification:
        """What these say. Nothing may be added to them afterwards."""
        made = cls.__new__(cls)
        made.__dict__["_findings"] = findings
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    if not TYPE_CHECKING:  # it would hide misspelt names

        def __getattr__(self, name: str) -> Any:
            if name not in self.__dataclass_fields__ or "_findings" not in self.__dict__:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            return self.__dict__.setdefault(name, getattr(self._findings, name)())


class Findings:
    """What is known of B images after their last inputs, with a method for each attribute.

    What a method returns is the caller's, who may write to it: no other one reads it.

    Args:
        state: what they were taken for.
        places: where AnchorNet looked.
        cost: multiply-adds of an image by its exit, from the first on.
        full_macs: of the last exit.
        map_size: (h, w) of an activation map.
    """

    def __init__(
        self,
        state: ExitState,
        places: SeenPlaces,
        cost: Sequence[int],
        full_macs: int,
        map_size: tuple[int, int],
    ) -> None:
        self._state = state
        self._places = places
        self._cost = cost
        self._full_macs = full_macs
        self._map_size = map_size

    def label(self) -> Tensor:
        return self._state.label()

    def probabilities(self) -> Tensor:
        return self._state.probabilities(None, self._state.answers_after())

    def exit_step(self) -> Tensor:
        return self._state.exit_step()

    def answer_step(self) -> Tensor:
        steps = self._state.answers_after()
        return self.exit_step() if isinstance(steps, int) else steps.clone()

    def confidence(self) -> Tensor:
        return self._state.confidence()

    def step_label(self) -> Tensor:
        return self._state.step_label()

    def top_left(self) -> Tensor:
        return self._places.used(self._state.exit_step(), self._state.common_step)

    def anchor_label(self) -> Tensor:
        return self._places.anchor_label()

    def activation_map(self) -> Tensor:
        found = self._places.activation_map
        return self.confidence().new_empty((0, *self._map_size)) if found is None else found

    def anchor_ran(self) -> Tensor:
        rows = self._places.rows
        return self.exit_step().new_empty(0) if rows is None else rows.clone()

    def macs(self) -> Tensor:
        exit_step, common = self._state.exit_step(), self._state.common_step
        if common is not None:
            return exit_step.fill_(self._cost[common - 1])
        return to_device(torch.tensor(self._cost), exit_step.device)[exit_step - 1]

    def full_macs(self) -> int:
        return self._full_macs


class SeenPlaces:
    """Where AnchorNet says to look, once it has been asked.

    Attributes:
        rows: (A,), the images that it saw.
        activation_map: (A, h, w).
    """

    def __init__(self, batch: int, num_exits: int, device: torch.device) -> None:
        self._batch = batch
        self._patches = num_exits - 1
        self._device = device
        self.rows: Tensor | None = None
        self.activation_map: Tensor | None = None
        self._label: Tensor | None = None  # (B,)
        self._top_left: Tensor | None = None  # (B, T - 1, 2)

    def note(self, rows: Tensor, places: Places) -> None:
        """What it says of the images `rows`."""
        self.rows, self.activation_map = rows, places.activation_map
        found = places.top_left
        if len(rows) == self._batch and found.shape[1] == self._patches:
            self._label, self._top_left = places.class_index, found
            return
        self._label, self._top_left = self._nothing(), self._nothing(self._patches, 2)
        self._label[rows] = places.class_index
        self._top_left[rows, : found.shape[1]] = found

    def of_inputs(self, rows: Tensor, step: int, size: int) -> Tensor:
        """(size A, 2): those of the images `rows` for `size` inputs from `step` on, by inputs."""
        assert self._top_left is not None
        if size == 1:
            wanted = self._top_left.select(1, step - 2)
        else:
            wanted = self._top_left[:, step - 2 : step - 2 + size]
        if rows.shape[0] < self._batch:
            wanted = wanted[rows]
        return wanted if size == 1 else wanted.transpose(0, 1).reshape(-1, 2)

    def anchor_label(self) -> Tensor:
        """(B,), -1 for images that it did not see."""
        return self._nothing() if self._label is None else self._label

    def used(self, exit_step: Tensor, common: int | None) -> Tensor:
        """(B, T - 1, 2), -1 behind an image's exit; `common` is the exit if all left at one."""
        if self._top_left is None:
            return self._nothing(self._patches, 2)
        if common == self._patches + 1:
            return self._top_left
        if common is not None:
            of_all = self._top_left.clone()
            of_all[:, common - 1 :] = -1
            return of_all
        used = torch.arange(1, self._patches + 1, device=self._device) < exit_step[:, None]
        return torch.where(used[:, :, None], self._top_left, -1)

    def _nothing(self, *shape: int) -> Tensor:
        size = (self._batch, *shape)
        return torch.full(size, -1, dtype=torch.int64, device=self._device)

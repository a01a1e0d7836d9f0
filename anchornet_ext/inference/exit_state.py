"""What Algorithm 1 remembers of images under way, in one row of device memory for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from anchornet_ext.ops import ExitStep, exit_step

from .exit_rules import ExitRules


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """From the host, without waiting for what the device is doing."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class RunningSums:
    """What decides about R images: the sums of what the networks said, one row for each.

    The images may be at different steps, and a row can be given to a new image. With the answer
    rule "surest", the sums that an image was surest with are kept as well.

    Args:
        num_rows: R.
        num_classes: n.
        rules: when images leave.
        dtype: of the sums, float32 or wider.
        device: of everything.
    """

    def __init__(
        self,
        num_rows: int,
        num_classes: int,
        rules: ExitRules,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._rules = rules
        self._sums = torch.zeros(num_rows, num_classes, dtype=dtype, device=device)  # (R, n)
        self._surest = _Surest(self._sums) if rules.policy.answer == "surest" else None
        self._on_device: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._sums)

    def clear(self, rows: Tensor) -> None:
        """Forgets the images of `rows` (A,), so that others can take their places."""
        self._sums.index_fill_(0, rows, 0)
        if self._surest is not None:
            self._surest.clear(rows)

    def add(self, rows: Tensor, logits: Tensor, step: int | Tensor) -> ExitStep:
        """Takes in what a network said and decides who leaves.

        Args:
            rows: (A,) int64, each at most once.
            logits: (A, n).
            step: how many inputs the images have seen with this one: an int, or (A,) int64.

        Returns:
            See `ops.exit_step`. At the last exit it does not let go of anybody.
        """
        rules = self._rules
        threshold: float | Tensor
        temperature: float | Tensor = 1.0
        if isinstance(step, Tensor):
            threshold = self._looked_up("thresholds", rules.thresholds, step)
            if rules.policy.temperatures is not None:
                temperature = self._looked_up("temperatures", rules.policy.temperatures, step)
        else:
            threshold = rules.thresholds[step - 1]
            temperature = rules.policy.temperature(step)
        decided = exit_step(
            self._sums,
            logits,
            rows,
            threshold,
            step=step,
            temperature=temperature,
            criterion=rules.criterion,
        )
        if self._surest is not None:
            self._surest.update(self._sums, rows, decided.confidence, step)
        return decided

    def answer_step(self, rows: Tensor | None, step: int | Tensor) -> int | Tensor:
        """After which input the images of `rows`, which have seen `step`, would answer now.

        Args:
            rows: None means all.
        """
        if self._surest is None:
            return step
        return self._surest.step if rows is None else self._surest.step[rows]

    def probabilities(self, rows: Tensor | None, step: int | Tensor) -> Tensor:
        """(A, n) of `rows` (A,), or of all: what they would answer if they left now.

        Args:
            rows: None means all.
            step: `answer_step` of them.
        """
        kept = self._sums if self._surest is None else self._surest.sums
        sums = kept if rows is None else kept.index_select(0, rows)
        if self._rules.criterion == "probabilities":
            return sums / (step[:, None] if isinstance(step, Tensor) else step)
        temperatures = self._rules.policy.temperatures
        if temperatures is not None:
            sums = sums - sums.amax(dim=1, keepdim=True)  # as exit_step: nothing overflows
            if isinstance(step, Tensor):
                sums /= self._looked_up("temperatures", temperatures, step)[:, None]
            else:
                sums /= self._rules.policy.temperature(step)
        return sums.softmax(dim=1)

    def _looked_up(self, name: str, values: Sequence[float], step: Tensor) -> Tensor:
        """(A,) of T `values`, those of the steps (A,), without waiting for the device."""
        table = self._on_device.get(name)
        if table is None:
            # Copied there once; steps are from 1, so that nothing is in front.
            on_host = torch.tensor((math.nan, *values), dtype=self._sums.dtype)
            table = self._on_device[name] = to_device(on_host, self._sums.device)
        return table.index_select(0, step)


class ExitState(RunningSums):
    """The sums of R images that began together, and what they were taken for after each input.

    Of each input only the operator's results are kept. The tables of all inputs are made when they
    are asked for: after a network's pass nothing of torch is in a cache, and each small operation
    between two passes takes 20 to 60 us.
    """

    def __init__(
        self,
        num_rows: int,
        num_classes: int,
        rules: ExitRules,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(num_rows, num_classes, rules, dtype, device)
        self._inputs: list[_Input] = []

    def note(self, rows: Tensor, logits: Tensor, step: int) -> ExitStep:
        """As `add`, and remembers what was decided.

        Args:
            rows: (A,) int64, ascending: those that have seen input `step`, the next one.
        """
        decided = self.add(rows, logits, step)
        some = None if rows.shape[0] == len(self) else rows
        self._inputs.append(_Input(step, some, decided.confidence, decided.prediction))
        return decided

    @property
    def common_step(self) -> int | None:
        """How many inputs all images have seen; None if not all as many."""
        if not self._inputs:
            return 1
        last = self._inputs[-1]
        return last.step if last.rows is None else None

    def exit_step(self) -> Tensor:
        """(R,) int64, how many inputs each image has seen."""
        if self.common_step is not None:
            return self._same_for_all(self.common_step)
        steps = self._same_for_all(1)
        for one in self._inputs:
            steps[one.chosen] = one.step  # the next input overwrites it for those that stayed
        return steps

    def confidence(self) -> Tensor:
        """(R, T), after each input, NaN where it was not reached."""
        table = self._sums.new_full((len(self), self._rules.num_exits), math.nan)
        for one in self._inputs:
            table[one.chosen, one.step - 1] = one.confidence.to(table.dtype)
        return table

    def step_label(self) -> Tensor:
        """(R, T) int64, the class after each input, -1 where it was not reached."""
        table = self._same_for_all(-1, self._rules.num_exits)
        for one in self._inputs:
            table[one.chosen, one.step - 1] = one.label
        return table

    def label(self) -> Tensor:
        """(R,) int64, the class of the input after which each image answers."""
        steps = self.answers_after()
        if isinstance(steps, Tensor):
            return self.step_label().gather(1, steps[:, None] - 1)[:, 0]
        return self._inputs[-1].label.clone() if self._inputs else self._same_for_all(-1)

    def answers_after(self) -> int | Tensor:
        """The input after which all images answer, or (R,) int64 for each."""
        common = self.common_step
        return self.answer_step(None, self.exit_step() if common is None else common)

    def _same_for_all(self, value: int, *shape: int) -> Tensor:
        size = (len(self), *shape)
        return torch.full(size, value, dtype=torch.int64, device=self._sums.device)


class _Input(NamedTuple):
    """What A images were taken for after an input."""

    step: int
    rows: Tensor | None
    """(A,) int64; None: all."""
    confidence: Tensor
    """(A,)"""
    label: Tensor
    """(A,) int64"""

    @property
    def chosen(self) -> Tensor | slice:
        """Of the rows in a table."""
        return slice(None) if self.rows is None else self.rows


class _Surest:
    """After which input each image was surest so far, and its sums then, (R, n).

    NaN is the least sure, and of equal confidences the later wins.
    """

    def __init__(self, running: Tensor) -> None:
        num_rows, num_classes = running.shape
        # The spare row at the end takes what is not better, so that nothing waits for the device
        # to tell how many are.
        self._sums = running.new_zeros(num_rows + 1, num_classes)
        self._confidence = running.new_full((num_rows,), -math.inf)
        self.step = torch.ones(num_rows, dtype=torch.int64, device=running.device)

    @property
    def sums(self) -> Tensor:
        return self._sums[:-1]

    def clear(self, rows: Tensor) -> None:
        # The first input is never worse than this, and replaces the sums and the step.
        self._confidence.index_fill_(0, rows, -math.inf)

    def update(
        self, running: Tensor, active: Tensor, confidence: Tensor, step: int | Tensor
    ) -> None:
        confidence = torch.where(confidence.isnan(), -math.inf, confidence)  # (A,)
        best = self._confidence[active]
        better = confidence >= best
        self._confidence[active] = torch.where(better, confidence, best)
        self.step[active] = torch.where(better, step, self.step[active])
        self._sums[torch.where(better, active, len(self.step))] = running[active]

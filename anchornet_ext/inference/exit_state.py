"""What Algorithm 1 remembers of images under way, in one row of device memory for each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from anchornet_ext.ops import ExitStep, exit_step

from .exit_rules import ExitRules


class Answers(NamedTuple):
    """What is known of R images after the inputs they have seen; see `early_exit.Classification`.

    Under the answer rule "last" `answer_step` and `exit_step` are the same tensor.
    """

    label: Tensor
    probabilities: Tensor
    exit_step: Tensor
    answer_step: Tensor
    confidence: Tensor
    step_label: Tensor


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

    def answer_step(self, rows: Tensor, step: int | Tensor) -> int | Tensor:
        """After which input the images of `rows`, which have seen `step`, would answer now."""
        return step if self._surest is None else self._surest.step[rows]

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
    """The sums of R images and what they were taken for after each input.

    As long as all images are at the same step, as in a batch that nobody has left, the whole rows
    are written and no table is asked for what is the same for all: each small operation left out
    saves 5 to 10 us, since after a network's pass nothing of it is in a cache.
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
        shape = (num_rows, rules.num_exits)
        self._confidence = self._sums.new_full(shape, math.nan)  # (R, T)
        self._step_label = torch.full(shape, -1, dtype=torch.int64, device=device)  # (R, T)
        self._common_step = 1  # of all images, where there is no
        self._exit_step: Tensor | None = None  # (R,)
        self._label: Tensor | None = None  # (R,), where all were seen by the last input

    @property
    def common_step(self) -> int | None:
        """How many inputs all images have seen; None if not all as many."""
        return self._common_step if self._exit_step is None else None

    def add(
        self, rows: Tensor, logits: Tensor, step: int | Tensor, whole: bool = False
    ) -> ExitStep:
        """As `RunningSums.add`.

        Args:
            whole: whether `rows` are all, in their order, and `step` a number.
        """
        decided = super().add(rows, logits, step)
        index = step - 1
        if whole and isinstance(index, int) and self._exit_step is None:
            self._step_label.select(1, index).copy_(decided.prediction)
            self._confidence.select(1, index).copy_(decided.confidence)
            self._common_step, self._label = index + 1, decided.prediction
            return decided
        if self._exit_step is None:
            self._exit_step = self._same_for_all(self._common_step)
        self._step_label[rows, index] = decided.prediction
        self._confidence[rows, index] = decided.confidence.to(self._confidence.dtype)
        self._exit_step[rows] = step  # the next input overwrites it for those that stay
        return decided

    def answers(self) -> Answers:
        """What the images would answer if they left now."""
        exit_step = self._exit_step
        if exit_step is None:
            exit_step = self._same_for_all(self._common_step)
            if self._surest is None and self._label is not None:
                return Answers(
                    label=self._label,
                    probabilities=self.probabilities(None, self._common_step),
                    exit_step=exit_step,
                    answer_step=exit_step,
                    confidence=self._confidence,
                    step_label=self._step_label,
                )
        answer_step = exit_step
        if self._surest is not None:
            answer_step = self._surest.step
        return Answers(
            label=self._step_label.gather(1, answer_step[:, None] - 1)[:, 0],
            probabilities=self.probabilities(None, answer_step),
            exit_step=exit_step,
            answer_step=answer_step,
            confidence=self._confidence,
            step_label=self._step_label,
        )

    def _same_for_all(self, step: int) -> Tensor:
        return self._step_label.new_full((len(self),), step)


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

"""What Algorithm 1 remembers of images under way, in one row of device memory for each."""

from __future__ import annotations

import math
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


class ExitState:
    """Sums, confidences and predictions of the images in `num_rows` rows.

    The images may be at different steps, and a row can be given to a new image.

    Args:
        num_rows: how many images there can be at a time.
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
        shape = (num_rows, rules.num_exits)
        self._sums = torch.zeros(num_rows, num_classes, dtype=dtype, device=device)  # (R, n)
        self._confidence = self._sums.new_full(shape, math.nan)  # (R, T)
        self._step_label = torch.full(shape, -1, dtype=torch.int64, device=device)  # (R, T)
        self._exit_step = torch.ones(num_rows, dtype=torch.int64, device=device)  # (R,)
        self._surest = _Surest(self._sums) if rules.policy.answer == "surest" else None
        # Looked up on the device by images that are at different steps.
        self._thresholds = self._sums.new_tensor(rules.thresholds)
        temperatures = rules.policy.temperatures
        self._temperatures = None if temperatures is None else self._sums.new_tensor(temperatures)

    def clear(self, rows: Tensor) -> None:
        """Forgets the images of `rows` (A,), so that others can take their places."""
        self._sums.index_fill_(0, rows, 0)
        self._confidence.index_fill_(0, rows, math.nan)
        self._step_label.index_fill_(0, rows, -1)
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
        index = step - 1
        threshold: float | Tensor
        temperature: float | Tensor = 1.0
        if isinstance(index, Tensor):
            threshold = self._thresholds[index]
            if self._temperatures is not None:
                temperature = self._temperatures[index]
        else:
            threshold = rules.thresholds[index]
            temperature = rules.policy.temperature(index + 1)
        decided = exit_step(
            self._sums,
            logits,
            rows,
            threshold,
            step=step,
            temperature=temperature,
            criterion=rules.criterion,
        )
        self._step_label[rows, index] = decided.prediction
        self._confidence[rows, index] = decided.confidence.to(self._confidence.dtype)
        self._exit_step[rows] = step  # the next input overwrites it for those that stay
        if self._surest is not None:
            self._surest.update(self._sums, rows, decided.confidence, step)
        return decided

    def answers(self, rows: Tensor | None = None) -> Answers:
        """What the images of `rows` (R,), or all, would answer if they left now."""
        chosen = slice(None) if rows is None else rows
        exit_step, step_label = self._exit_step[chosen], self._step_label[chosen]
        sums, answer_step = self._sums[chosen], exit_step
        if self._surest is not None:
            sums, answer_step = self._surest.sums[chosen], self._surest.step[chosen]
        return Answers(
            label=step_label.gather(1, answer_step[:, None] - 1)[:, 0],
            probabilities=self._probabilities(sums, answer_step),
            exit_step=exit_step,
            answer_step=answer_step,
            confidence=self._confidence[chosen],
            step_label=step_label,
        )

    def _probabilities(self, sums: Tensor, step: Tensor) -> Tensor:
        if self._rules.criterion == "probabilities":
            return sums / step[:, None]
        if self._temperatures is not None:
            sums = sums - sums.amax(dim=1, keepdim=True)  # as exit_step: nothing overflows
            sums /= self._temperatures[step - 1, None]
        return sums.softmax(dim=1)


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

"""Specification of `anchornet_ext.inference.early_exit`: Algorithm 1, one image at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from .class_activation_map import class_activation_map
from .select_patches import select_patches


class Exit(NamedTuple):
    """Where one image left, and with which answer."""

    label: int
    exit_step: int  # 1-based: the number of inputs used
    answer_step: int  # 1-based: the input after which the label was predicted
    probabilities: Tensor  # (n,), after that input
    confidence: list[float]  # after each input used
    top_left: list[tuple[int, int]]  # of each patch used


def sequential_inference(
    logits: Iterable[Tensor],
    thresholds: Sequence[float],
    criterion: str = "logits",
    temperatures: Sequence[float] | None = None,
    answer: str = "last",
) -> Exit:
    """Algorithm 1 on f(x_1), f(x_2), ... (n,), taken one by one and none more than needed.

    The answer is the prediction after the last input ("last"), or after the one with the highest
    confidence ("surest"; of equal ones the later, NaN is the lowest). Patches are unknown here.
    """
    length = len(thresholds) + 1
    total: Tensor | None = None
    confidences: list[float] = []
    after: list[tuple[int, Tensor]] = []  # label and probabilities after each input
    for step, f in enumerate(logits, start=1):
        temperature = 1.0 if temperatures is None else temperatures[step - 1]
        new = (f / temperature).softmax(dim=0) if criterion == "probabilities" else f
        total = new if total is None else total + new
        if criterion == "probabilities":
            probabilities = total / step
        else:
            probabilities = (total / temperature).softmax(dim=0)
        after.append((int(total.argmax()), probabilities))
        confidences.append(float(probabilities.max()))
        if step == length or confidences[-1] > thresholds[step - 1]:
            break
    # A sequence that is shorter than T: its end is the last exit.
    if not after:
        raise ValueError("the sequence of inputs is empty")
    answer_step = len(after)
    if answer == "surest":
        sure = [-math.inf if math.isnan(value) else value for value in confidences]
        answer_step = max(range(1, len(after) + 1), key=lambda step: (sure[step - 1], step))
    label, probabilities = after[answer_step - 1]
    return Exit(label, len(after), answer_step, probabilities, confidences, [])


@torch.no_grad()
def classify_image(
    image: Tensor,
    anchor: Any,
    glance: Callable[[Tensor], Tensor] | nn.Module,
    focus: Callable[[Tensor], Tensor] | nn.Module,
    *,
    thresholds: Sequence[float],
    glance_size: int,
    iou_threshold: float | Sequence[float] = 0.3,
    criterion: str = "logits",
    temperatures: Sequence[float] | None = None,
    answer: str = "last",
) -> Exit:
    """Section 3.4 for one normalised image (3, H, W), every network in eval mode.

    `anchor` has `features`, `class_weight`, `patch_size` and `stride` as `AnchorNet` has. There are
    len(thresholds) patches, or as many as the grid has locations.
    """
    batch = image[None]
    size, stride = int(anchor.patch_size), int(anchor.stride)
    top_left: list[tuple[int, int]] = []

    def inputs() -> Iterator[Tensor]:
        small = functional.interpolate(
            batch, size=(glance_size, glance_size), mode="bicubic", align_corners=True
        )
        yield glance(small)[0]
        label = anchor(batch).argmax(dim=1)
        cam = class_activation_map(anchor.features(batch), anchor.class_weight, label)
        num_patches = min(len(thresholds), cam[0].numel())
        ranks = (
            [float(iou_threshold)] * num_patches
            if isinstance(iou_threshold, (int, float))
            else list(iou_threshold)[:num_patches]
        )
        _, corners, _ = select_patches(cam, num_patches, size, stride, ranks)
        for row, column in corners[0].tolist():
            top_left.append((row, column))
            yield focus(batch[:, :, row : row + size, column : column + size])[0]

    found = sequential_inference(inputs(), thresholds, criterion, temperatures, answer)
    return found._replace(top_left=top_left)

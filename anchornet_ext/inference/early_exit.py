"""Algorithm 1 for a batch: what an image does not need is not computed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from anchornet_ext.models.localise import localise
from anchornet_ext.ops import exit_step, gather_patches
from anchornet_ext.policy.exit_policy import ExitPolicy

if TYPE_CHECKING:
    from .two_stage import TwoStageClassifier


@dataclass(frozen=True)
class Classification:
    """What `classify` found for B images, n classes, T exits; all on the images' device.

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
        macs: (B,) int64, multiply-adds that each image cost.
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


def classify(
    classifier: TwoStageClassifier,
    images: Tensor,
    thresholds: Sequence[float] | None = None,
    exit_at: int | None = None,
    *,
    policy: ExitPolicy | None = None,
) -> Classification:
    """Runs Algorithm 1 on a batch with real early exit.

    The glance sees every image, AnchorNet those that the glance left, and the focus network at each
    step one patch of every image that is still there. Between the steps the batch is compacted on
    the device; the host reads one number, how many stay. An image leaves after input t when its
    confidence is above thresholds[t - 1], and at the last exit in any case. Its answer is what it
    was predicted to be there or, if the policy says so, where it was surest.

    The networks run in eval mode without gradients, and their modes are put back afterwards. The
    fastest classifier is the folded one (`TwoStageClassifier.fold`): its AnchorNet has no batch
    norm and no 512-channel map, and its weights are in channels_last, as the inputs here are.

    Args:
        classifier: the networks and settings.
        images: (B, 3, H, W) floating point, normalised; H and W at least the patch size. B may
            be 0. On images so small that AnchorNet's grid has fewer than `num_patches` locations,
            the sequence ends with the patches there are.
        thresholds: T - 1 floats for exits 1..T-1: 1 or more never lets an image leave, below 0
            always does. Short for `policy=ExitPolicy(thresholds)`, so without temperatures and with
            the answer of the last input.
        exit_at: anytime prediction: every image leaves at this exit, 1 to T, whatever the policy's
            thresholds; its temperatures and its answer rule hold. Not together with `thresholds`.
        policy: thresholds, temperatures and answer rule. None: the classifier's own policy, without
            which no image leaves early.

    Raises:
        ValueError: images of a wrong shape, thresholds that are NaN or not T - 1, a policy for
            another number of exits, `exit_at` out of 1..T, thresholds together with `exit_at` or
            with a policy, or networks that differ in their classes.
        TypeError: images are not floating point.
    """
    check_images(classifier, images)
    policy = _chosen_policy(classifier, thresholds, exit_at, policy)
    # The threshold of each exit that may run. The last one's is never compared.
    limits = (*policy.thresholds, math.inf) if exit_at is None else (math.inf,) * exit_at
    with torch.no_grad(), evaluating(classifier):
        return _classify(classifier, images, limits, policy)


def _chosen_policy(
    classifier: TwoStageClassifier,
    thresholds: Sequence[float] | None,
    exit_at: int | None,
    policy: ExitPolicy | None,
) -> ExitPolicy:
    if thresholds is not None:
        if exit_at is not None:
            raise ValueError("give thresholds or exit_at, not both")
        if policy is not None:
            raise ValueError("give thresholds or a policy, not both: a policy has its own")
        policy = ExitPolicy(classifier.checked_thresholds(thresholds))
    if exit_at is not None and not 1 <= exit_at <= classifier.num_exits:
        raise ValueError(f"exit_at must be 1 to {classifier.num_exits}, got {exit_at}")
    if policy is None:
        policy = classifier.policy
    if policy is None:
        policy = ExitPolicy.never(classifier.num_exits)
    policy.require_exits(classifier.num_exits)
    return policy


def _classify(
    classifier: TwoStageClassifier, images: Tensor, limits: tuple[float, ...], policy: ExitPolicy
) -> Classification:
    batch, _, height, width = images.shape
    num_exits = classifier.num_exits
    device = images.device
    num_patches = available_patches(classifier, (height, width))
    last = min(len(limits), 1 + num_patches)  # the exit where everybody leaves

    macs = classifier.macs_per_exit((height, width))
    running = torch.zeros(
        batch,
        classifier.num_classes,
        dtype=torch.promote_types(images.dtype, torch.float32),
        device=device,
    )  # (B, n)
    step_label = torch.full((batch, num_exits), -1, dtype=torch.int64, device=device)  # (B, T)
    exit_index = torch.ones(batch, dtype=torch.int64, device=device)  # (B,)
    confidence = running.new_full((batch, num_exits), math.nan)  # (B, T)
    planned = torch.full((batch, num_exits - 1, 2), -1, dtype=torch.int64, device=device)
    anchor_label = torch.full_like(exit_index, -1)  # (B,)
    activation_map = running.new_empty((0, *_grid(classifier, (height, width))))  # (A, h, w)
    anchor_ran = exit_index.new_empty(0)  # (A,)

    surest = _Surest(running) if policy.answer == "surest" else None

    active = torch.arange(batch, device=device)
    for step in range(1, last + 1):
        if len(active) == 0:
            break
        if step == 1:
            logits = classifier.glance(_channels_last(classifier.glance_input(images)))
        else:
            if step == 2:
                left = images if len(active) == batch else images[active]
                # Only the patches that can still be looked at are localised.
                found = localise(
                    classifier.anchor,
                    _channels_last(left),
                    num_patches=num_patches,
                    iou_threshold=_ranks(classifier.iou_threshold, num_patches),
                )
                anchor_ran, activation_map = active, found.activation_map
                anchor_label[active] = found.class_index
                planned[active, :num_patches] = found.selection.top_left
            patches = gather_patches(
                images,
                planned[active, step - 2],
                classifier.patch_size,
                image_index=active,
                memory_format=torch.channels_last,
            )  # (A, 3, K, K)
            logits = classifier.focus(patches)
        check_logits(classifier, logits, "glance" if step == 1 else "focus")
        left_at = exit_step(
            running,
            logits,
            active,
            limits[step - 1],
            step=step,
            temperature=policy.temperature(step),
            criterion=classifier.criterion,
        )
        step_label[active, step - 1] = left_at.prediction
        confidence[active, step - 1] = left_at.confidence.to(confidence.dtype)
        exit_index[active] = step  # the next step overwrites it for those that stay
        if surest is not None:
            surest.update(running, active, left_at.confidence, step)
        if step < last:
            active = left_at.active[: int(left_at.num_active)]  # the one host read of the step

    used = torch.arange(1, num_exits, device=device) < exit_index[:, None]  # (B, T - 1)
    answer, answer_index = running, exit_index
    if surest is not None:
        answer, answer_index = surest.sums, surest.step
    if classifier.criterion == "probabilities":
        probabilities = answer / answer_index[:, None]
    else:
        if policy.temperatures is not None:
            answer = answer - answer.amax(dim=1, keepdim=True)  # as exit_step: nothing overflows
            answer /= answer.new_tensor(policy.temperatures)[answer_index - 1, None]
        probabilities = answer.softmax(dim=1)
    return Classification(
        label=step_label.gather(1, answer_index[:, None] - 1)[:, 0],
        probabilities=probabilities,
        exit_step=exit_index,
        answer_step=answer_index,
        confidence=confidence,
        step_label=step_label,
        top_left=torch.where(used[:, :, None], planned, -1),
        anchor_label=anchor_label,
        activation_map=activation_map,
        anchor_ran=anchor_ran,
        macs=torch.tensor(macs, device=device)[exit_index - 1],
        full_macs=macs[num_patches],  # exit 1 + num_patches
    )


class _Surest:
    """After which input each image was surest so far, and its sums then, (B, n).

    NaN is the least sure, and of equal confidences the later wins.
    """

    def __init__(self, running: Tensor) -> None:
        batch, num_classes = running.shape
        # The spare row at the end takes what is not better, so that nothing waits for the device
        # to tell how many are.
        self._sums = running.new_zeros(batch + 1, num_classes)
        self._confidence = running.new_full((batch,), -math.inf)
        self.step = torch.ones(batch, dtype=torch.int64, device=running.device)

    @property
    def sums(self) -> Tensor:
        return self._sums[:-1]

    def update(self, running: Tensor, active: Tensor, confidence: Tensor, step: int) -> None:
        confidence = torch.where(confidence.isnan(), -math.inf, confidence)  # (A,)
        best = self._confidence[active]
        better = confidence >= best
        self._confidence[active] = torch.where(better, confidence, best)
        self.step[active] = torch.where(better, step, self.step[active])
        self._sums[torch.where(better, active, len(self.step))] = running[active]


def check_images(classifier: TwoStageClassifier, images: Tensor) -> None:
    """Raises if `images` are not (B, 3, H, W), floating point and at least a patch large."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise TypeError(
            f"images must be floating point and normalised (see Preprocessing), got {images.dtype}"
        )
    height, width = images.shape[-2:]
    if min(height, width) < classifier.patch_size:
        raise ValueError(
            f"images must be at least {classifier.patch_size}x{classifier.patch_size} pixels, "
            f"got {height}x{width}"
        )


def check_logits(classifier: TwoStageClassifier, logits: Tensor, part: str) -> None:
    """Raises if a network's output is not (A, n) with AnchorNet's n."""
    if logits.ndim != 2 or logits.shape[1] != classifier.num_classes:
        raise ValueError(
            f"the {part} network gives {tuple(logits.shape)}, expected logits of "
            f"AnchorNet's {classifier.num_classes} classes"
        )


def available_patches(classifier: TwoStageClassifier, image_size: tuple[int, int]) -> int:
    """num_patches, or the number of locations on the grid where that is less."""
    rows, columns = _grid(classifier, image_size)
    return min(classifier.num_patches, rows * columns)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Puts every submodule into eval mode and its own mode back afterwards."""
    training = [part for part in module.modules() if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _grid(classifier: TwoStageClassifier, image_size: tuple[int, int]) -> tuple[int, int]:
    height, width = image_size
    stride, patch = classifier.anchor.stride, classifier.patch_size
    return (height - patch) // stride + 1, (width - patch) // stride + 1


def _ranks(iou_threshold: float | Sequence[float], num_patches: int) -> float | Sequence[float]:
    if isinstance(iou_threshold, (int, float)):
        return iou_threshold
    return list(iou_threshold)[:num_patches]


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)

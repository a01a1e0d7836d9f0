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

if TYPE_CHECKING:
    from .two_stage import TwoStageClassifier


@dataclass(frozen=True)
class Classification:
    """What `classify` found for B images, n classes, T exits; all on the images' device.

    Attributes:
        label: (B,) int64, index of the predicted class.
        probabilities: (B, n) at the exit: softmax of the summed logits, or under the criterion
            "probabilities" the mean of the probabilities of the inputs used.
        exit_step: (B,) int64, the number of inputs used, 1 (the glance alone) to T.
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
) -> Classification:
    """Runs Algorithm 1 on a batch with real early exit.

    The glance sees every image, AnchorNet those that the glance left, and the focus network at each
    step one patch of every image that is still there. Between the steps the batch is compacted on
    the device; the host reads one number, how many stay. An image leaves after input t when its
    confidence is above thresholds[t - 1], and at the last exit in any case.

    The networks run in eval mode without gradients, and their modes are put back afterwards. The
    fastest classifier is the folded one (`TwoStageClassifier.fold`): its AnchorNet has no batch
    norm and no 512-channel map, and its weights are in channels_last, as the inputs here are.

    Args:
        classifier: the networks and settings.
        images: (B, 3, H, W) floating point, normalised; H and W at least the patch size. B may
            be 0. On images so small that AnchorNet's grid has fewer than `num_patches` locations,
            the sequence ends with the patches there are.
        thresholds: T - 1 floats for exits 1..T-1: 1 or more never lets an image leave, below 0
            always does. None: the classifier's own ones, without which no image leaves early.
        exit_at: anytime prediction: every image leaves at this exit, 1 to T. Not together with
            `thresholds`.

    Raises:
        ValueError: images of a wrong shape, thresholds that are NaN or not T - 1, `exit_at` out of
            1..T or together with `thresholds`, or networks that differ in their classes.
        TypeError: images are not floating point.
    """
    check_images(classifier, images)
    limits = _limits(classifier, thresholds, exit_at)
    with torch.no_grad(), evaluating(classifier):
        return _classify(classifier, images, limits)


def _limits(
    classifier: TwoStageClassifier, thresholds: Sequence[float] | None, exit_at: int | None
) -> tuple[float, ...]:
    """The threshold of each exit that may run. The last exit's is never compared."""
    never = (math.inf,)
    if exit_at is not None:
        if thresholds is not None:
            raise ValueError("give thresholds or exit_at, not both")
        if not 1 <= exit_at <= classifier.num_exits:
            raise ValueError(f"exit_at must be 1 to {classifier.num_exits}, got {exit_at}")
        return never * exit_at
    if thresholds is not None:
        return classifier.checked_thresholds(thresholds) + never
    if classifier.thresholds is not None:
        return classifier.thresholds + never
    return never * classifier.num_exits


def _classify(
    classifier: TwoStageClassifier, images: Tensor, limits: tuple[float, ...]
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
            running, logits, active, limits[step - 1], step=step, criterion=classifier.criterion
        )
        step_label[active, step - 1] = left_at.prediction
        confidence[active, step - 1] = left_at.confidence.to(confidence.dtype)
        exit_index[active] = step  # the next step overwrites it for those that stay
        if step < last:
            active = left_at.active[: int(left_at.num_active)]  # the one host read of the step

    used = torch.arange(1, num_exits, device=device) < exit_index[:, None]  # (B, T - 1)
    if classifier.criterion == "probabilities":
        probabilities = running / exit_index[:, None]
    else:
        probabilities = running.softmax(dim=1)
    return Classification(
        label=step_label.gather(1, exit_index[:, None] - 1)[:, 0],
        probabilities=probabilities,
        exit_step=exit_index,
        confidence=confidence,
        step_label=step_label,
        top_left=torch.where(used[:, :, None], planned, -1),
        anchor_label=anchor_label,
        activation_map=activation_map,
        anchor_ran=anchor_ran,
        macs=torch.tensor(macs, device=device)[exit_index - 1],
        full_macs=macs[num_patches],  # exit 1 + num_patches
    )


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

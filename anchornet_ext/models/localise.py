"""Where to look in an image: section 3.3 on top of AnchorNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from anchornet_ext import ops

from .anchornet import AnchorNet, FoldedAnchorNet


class Localisation(NamedTuple):
    """What AnchorNet says about a batch of images."""

    logits: Tensor
    """(B, N): AnchorNet's own classification."""
    class_index: Tensor
    """(B,) int64: the class whose evidence was localised."""
    activation_map: Tensor
    """(B, h, w) float32 (float64 for float64 features): Eq. 2 for that class, up to a constant per
    class."""
    selection: ops.PatchSelection
    """The patches, most activated first."""


def localise(
    anchor: AnchorNet | FoldedAnchorNet,
    images: Tensor,
    num_patches: int = 4,
    iou_threshold: float | Sequence[float] = 0.3,
    class_index: int | Tensor | None = None,
) -> Localisation:
    """The patches that speak most for one class of each image (section 3.3).

    The map is ``class_weight[n] @ X`` on AnchorNet's 96-channel features X. Eq. 2 is written for
    the 512 expanded channels; the two differ by ``(W_fc b_exp)[n]``, the same number at every
    location of a map, so the order of the locations and the patches are those of Eq. 2.

    Nothing here switches gradients off or sets evaluation mode: call it under
    ``torch.inference_mode()`` with ``anchor.eval()``.

    Args:
        anchor: the patch proposal network; folded, it takes a quarter of the time on a CPU, or
            less (`anchornet bench localisation`).
        images: (B, C, H, W) normalised, floating point, H and W at least 95 pixels.
        num_patches: k, patches per image, at most the locations of the map.
        iou_threshold: two patches of an image overlap by less than this intersection over union, in
            [0, 1]; one value or one per patch (see `ops.select_patches`).
        class_index: the class to localise: one for all images, (B,) int64 for each its own, or None
            for the one that AnchorNet predicts.

    Raises:
        ValueError: images of a wrong shape or too small, a class or a threshold out of range, more
            patches than locations.
        TypeError: an argument of the wrong type or dtype.
        ImportError: the native library is missing or has no kernels for the device.
    """
    if class_index is not None:
        class_index = _check_classes(class_index, images, anchor.num_classes)
    features = anchor.features(images)  # (B, 96, h, w)
    logits = anchor.logits(features)  # (B, N)
    classes = logits.argmax(dim=1) if class_index is None else class_index
    activation_map = ops.class_activation_map(features, anchor.class_weight, classes)  # (B, h, w)
    selection = ops.select_patches(
        activation_map, num_patches, anchor.patch_size, anchor.stride, iou_threshold
    )
    return Localisation(logits, classes, activation_map, selection)


def random_places(
    batch: int,
    num_patches: int,
    image_size: tuple[int, int],
    patch_size: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Patches chosen by chance, the comparison of section 4.3: "uniformly chosen from the image".

    Every patch is drawn from all pixel positions alike, independent of the others.

    Args:
        batch: B, the number of images.
        num_patches: k, patches per image.
        image_size: (H, W) in pixels, at least `patch_size` each.
        patch_size: in pixels.
        generator: on the CPU, so that a seed means the same patches on every device; None is
            torch's global stream.

    Returns:
        (B, k, 2) int64 on the CPU, (row, column) of the patches' top left pixels.
    """
    room = torch.tensor([side - patch_size for side in image_size])
    fraction = torch.rand(batch, num_patches, 2, generator=generator, dtype=torch.float64)
    # Every one of room + 1 positions is equally likely.
    return (fraction * (room + 1)).floor().long()


def _check_classes(class_index: int | Tensor, images: Tensor, num_classes: int) -> Tensor:
    """`class_index` as (B,) int64 on the device of `images`."""
    if isinstance(class_index, Tensor):
        if class_index.dtype != torch.int64:
            raise TypeError(f"class_index must be int64, got {class_index.dtype}")
        if class_index.shape != images.shape[:1]:
            raise ValueError(
                f"class_index must be ({images.shape[0]},) as there are images, "
                f"got {tuple(class_index.shape)}"
            )
        # On a GPU the values stay unread, to not wait for it: the operator clamps them.
        if class_index.device.type == "cpu" and class_index.numel():
            low, high = class_index.aminmax()
            for value in (int(low), int(high)):
                _check_class(value, num_classes)
        return class_index.to(images.device)
    if isinstance(class_index, bool) or not isinstance(class_index, int):
        raise TypeError(f"class_index must be an int, a tensor or None, got {class_index!r}")
    _check_class(class_index, num_classes)
    return torch.full(images.shape[:1], class_index, dtype=torch.int64, device=images.device)


def _check_class(value: int, num_classes: int) -> None:
    if not 0 <= value < num_classes:
        raise ValueError(f"class_index must be in [0, {num_classes}), got {value}")

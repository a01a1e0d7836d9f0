"""Where the patches come from: AnchorNet, chance, or the middle (the comparison of Table 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from anchornet_ext.models.localise import localise, random_places
from anchornet_ext.ops import gather_patches

from .early_exit import check_images, evaluating
from .passes import available_patches, check_logits

if TYPE_CHECKING:
    from .two_stage import TwoStageClassifier

PatchPolicy = Literal["anchornet", "random", "centre"]
POLICIES: tuple[PatchPolicy, ...] = ("anchornet", "random", "centre")

#: Where the patches of the policy "centre" lie, as fractions of the room that a patch has to move:
#: the middle, the four corners, then the middles of the four sides.
CENTRE_PATTERN = (
    (0.5, 0.5),
    (0.0, 0.0),
    (1.0, 1.0),
    (0.0, 1.0),
    (1.0, 0.0),
    (0.0, 0.5),
    (1.0, 0.5),
    (0.5, 0.0),
    (0.5, 1.0),
)


@torch.no_grad()
def patch_locations(
    classifier: TwoStageClassifier,
    images: Tensor,
    policy: PatchPolicy = "anchornet",
    generator: torch.Generator | None = None,
    num_patches: int | None = None,
) -> Tensor:
    """The patches that a policy looks at, in their order. It has no gradient.

    "anchornet" is section 3.3. "random" draws every patch uniformly from all pixel positions,
    independent of the others (section 4.3: "uniformly chosen from the image"). "centre" takes the
    middle, the corners and the sides, in the order of `CENTRE_PATTERN`: the same for all images.

    Args:
        classifier: whose AnchorNet, patch size and IoU threshold are used.
        images: (B, 3, H, W), normalised.
        policy: one of the three.
        generator: for "random", on the CPU so that a seed means the same patches on every device.
        num_patches: how many; None is the classifier's.

    Returns:
        (B, k, 2) int64 on the images' device, (row, column) of the patches' top left pixels.

    Raises:
        ValueError: an unknown policy, wrong images, or more patches than the policy has.
    """
    check_images(classifier, images)
    batch, _, height, width = images.shape
    if num_patches is None:
        num_patches = available_patches(classifier, (height, width))
    room = torch.tensor([height - classifier.patch_size, width - classifier.patch_size])
    if policy == "random":
        size = (height, width)
        places = random_places(batch, num_patches, size, classifier.patch_size, generator)
        return places.to(images.device)
    if policy == "centre":
        if num_patches > len(CENTRE_PATTERN):
            raise ValueError(
                f"the policy 'centre' has {len(CENTRE_PATTERN)} patches, asked for {num_patches}"
            )
        pattern = torch.tensor(CENTRE_PATTERN[:num_patches], dtype=torch.float64)
        top_left = (pattern * room).round().long().to(images.device)  # (k, 2)
        return top_left.expand(batch, -1, -1)
    if policy != "anchornet":
        raise ValueError(f"policy must be one of {', '.join(POLICIES)}, got {policy!r}")
    iou_threshold = classifier.iou_threshold
    if not isinstance(iou_threshold, (int, float)):
        # Of a list for each rank, the last one holds for ranks beyond it.
        ranks = list(iou_threshold)
        iou_threshold = (ranks + ranks[-1:] * num_patches)[:num_patches]
    if batch == 0:
        return torch.empty((0, num_patches, 2), dtype=torch.int64, device=images.device)
    found = localise(
        classifier.anchor, images, num_patches=num_patches, iou_threshold=iou_threshold
    )
    return found.selection.top_left


def input_logits(
    classifier: TwoStageClassifier,
    images: Tensor,
    policy: PatchPolicy = "anchornet",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Logits of each input of the sequence by itself, (T, B, n): the glance, then the patches.

    Nothing is switched to eval mode and gradients flow into the glance and focus networks; the
    choice of patches has none.
    """
    top_left = patch_locations(classifier, images, policy, generator)  # (B, T - 1, 2)
    batch, num_patches, _ = top_left.shape
    glance = classifier.glance(classifier.glance_input(images))  # (B, n)
    check_logits(glance, classifier.num_classes, "glance")
    patches = gather_patches(images, top_left, classifier.patch_size)  # (B * (T - 1), 3, K, K)
    focus = classifier.focus(patches)
    check_logits(focus, classifier.num_classes, "focus")
    focus = focus.unflatten(0, (batch, num_patches)).transpose(0, 1)  # (T - 1, B, n)
    return torch.cat((glance[None], focus))


def anytime_logits(
    classifier: TwoStageClassifier,
    images: Tensor,
    policy: PatchPolicy = "anchornet",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Summed logits after each input, (T, B, n), in eval mode and without gradients.

    Row t - 1 is what Algorithm 1 decides on at exit t under the criterion "logits". All inputs are
    computed for all images: this is for evaluation, not for speed.

    Args, Raises: see `patch_locations`.
    """
    with torch.no_grad(), evaluating(classifier.network_modules()):
        logits = input_logits(classifier, images, policy, generator)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).cumsum(dim=0)

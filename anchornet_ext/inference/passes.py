"""The three passes of Algorithm 1 over a batch: the glance, AnchorNet, and one patch of each image.

Whoever runs them sees three functions of tensors. That is where `torch.compile` is put around the
networks: with a constant batch, their shapes never change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from anchornet_ext.models.localise import localise
from anchornet_ext.models.tuning import TunedNetwork

if TYPE_CHECKING:
    from .two_stage import TwoStageClassifier

#: Of how many images at most a CPU computes a pass at once. The usual networks' largest maps take
#: 0.6 MB an image at 95 pixels; beyond 32 MiB the C library gets new pages for them at every call.
MOST_AT_ONCE = 48


class Places(NamedTuple):
    """Where to look in B images."""

    class_index: Tensor
    """(B,) int64: the class whose map chose the patches."""
    activation_map: Tensor
    """(B, h, w): that map."""
    top_left: Tensor
    """(B, k, 2) int64, (row, column) in pixels, most activated first."""


@dataclass(frozen=True)
class Passes:
    """What is run on batches of images of one size; inputs in channels_last.

    Attributes:
        image_size: (H, W) of the images, in pixels.
        glance: resized images (B, 3, g, g) -> logits (B, n).
        localise: images (B, 3, H, W) -> `Places`.
        focus: patches (B, 3, K, K) -> logits (B, n).
        constant_batch: whether incomplete batches must be filled up before they are passed in,
            because another shape would have to be compiled anew.
    """

    image_size: tuple[int, int]
    glance: Callable[[Tensor], Tensor]
    localise: Callable[[Tensor], Places]
    focus: Callable[[Tensor], Tensor]
    constant_batch: bool = False


def plain_passes(classifier: TwoStageClassifier, image_size: tuple[int, int]) -> Passes:
    """The networks as they are."""
    num_patches = available_patches(classifier, image_size)
    ranks = _ranks(classifier.iou_threshold, num_patches)

    def places(images: Tensor) -> Places:
        # Only the patches that can still be looked at are localised.
        found = localise(classifier.anchor, images, num_patches=num_patches, iou_threshold=ranks)
        return Places(found.class_index, found.activation_map, found.selection.top_left)

    return Passes(image_size, _in_pieces(classifier.glance), places, _in_pieces(classifier.focus))


def compiled_passes(
    classifier: TwoStageClassifier,
    image_size: tuple[int, int] | None = None,
    **options: Any,
) -> Passes:
    """The networks through `torch.compile`, for batches of one size.

    The first batch of each pass compiles it, which can take minutes. Keep the result and give it to
    every stream of the same batch size (`TwoStageClassifier.stream(passes=...)`). The weights are
    the classifier's own, so that later changes to them count.

    Args:
        classifier: the networks. The folded one is the faster.
        image_size: (H, W); None is the preprocessing's crop.
        options: of `torch.compile`, `backend` or `mode` say; mode="reduce-overhead" records CUDA
            graphs.

    Raises:
        ValueError: images of that size are smaller than a patch.
    """
    if image_size is None:
        image_size = (classifier.preprocessing.crop_size,) * 2
    check_image_size(classifier, image_size)
    plain = plain_passes(classifier, image_size)
    options = {"dynamic": False, **options}
    return Passes(
        image_size,
        glance=torch.compile(classifier.glance, **options),
        localise=torch.compile(plain.localise, **options),
        focus=torch.compile(classifier.focus, **options),
        constant_batch=True,
    )


def check_image_size(classifier: TwoStageClassifier, image_size: tuple[int, int]) -> None:
    """Raises if images of this size (H, W) are smaller than a patch."""
    height, width = image_size
    if min(height, width) < classifier.patch_size:
        raise ValueError(
            f"images must be at least {classifier.patch_size}x{classifier.patch_size} pixels, "
            f"got {height}x{width}"
        )


def check_logits(logits: Tensor, num_classes: int, part: str) -> None:
    """Raises if a network's output is not (A, n) with AnchorNet's n."""
    if logits.ndim != 2 or logits.shape[1] != num_classes:
        raise ValueError(
            f"the {part} network gives {tuple(logits.shape)}, expected logits of "
            f"AnchorNet's {num_classes} classes"
        )


def map_size(classifier: TwoStageClassifier, image_size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) of AnchorNet's map, which are the locations of the grid."""
    height, width = image_size
    stride, patch = classifier.anchor.stride, classifier.patch_size
    return (height - patch) // stride + 1, (width - patch) // stride + 1


def available_patches(classifier: TwoStageClassifier, image_size: tuple[int, int]) -> int:
    """num_patches, or the number of locations on the grid where that is less."""
    rows, columns = map_size(classifier, image_size)
    return min(classifier.num_patches, rows * columns)


def channels_last(images: Tensor) -> Tensor:
    """The same images in the memory format that the networks are fastest with."""
    return images.contiguous(memory_format=torch.channels_last)


def _in_pieces(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """The network over pieces of a large batch on the CPU, of nearly the same size."""

    def run(images: Tensor) -> Tensor:
        pieces = 1
        if images.is_cpu and len(images) > 1:  # to ask the network takes a while
            pieces = -(-len(images) // _most_at_once(network))
        if pieces <= 1:
            logits: Tensor = network(images)
            return logits
        return torch.cat([network(piece) for piece in images.tensor_split(pieces)])

    return run


def _most_at_once(network: nn.Module) -> int:
    own = network.best_batch if isinstance(network, TunedNetwork) else None
    return own or MOST_AT_ONCE


def _ranks(iou_threshold: float | Sequence[float], num_patches: int) -> float | Sequence[float]:
    if isinstance(iou_threshold, (int, float)):
        return iou_threshold
    return list(iou_threshold)[:num_patches]

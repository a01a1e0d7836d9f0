"""Images at the size that a network sees."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from anchornet_ext import _extension
from anchornet_ext.ops import resize_images


def bicubic_square(images: Tensor, side: int) -> Tensor:
    """(B, C, H, W) to (B, C, side, side), bicubic with corners aligned, in channels_last."""
    size = (side, side)
    # On a CPU several times as fast as torch's (docs/operators.md); of a GPU there are no figures.
    if images.device.type == "cpu" and _extension.available():
        return resize_images(images, size, memory_format=torch.channels_last)
    if images.shape[0] == 0:  # the resampling kernels refuse an empty batch
        return images.new_empty((0, images.shape[1], *size))
    small = functional.interpolate(images, size=size, mode="bicubic", align_corners=True)
    return small.contiguous(memory_format=torch.channels_last)


def resized_square(images: Tensor, side: int) -> Tensor:
    """`bicubic_square`, but images that have this size already are returned as they are."""
    return images if tuple(images.shape[2:]) == (side, side) else bicubic_square(images, side)

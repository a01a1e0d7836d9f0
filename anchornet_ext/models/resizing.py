"""Images at the size that a network sees."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from anchornet_ext import _extension


def resized_square(images: Tensor, side: int) -> Tensor:
    """(B, C, H, W) to (B, C, side, side), bicubic with corners aligned, in channels_last.

    Images that have this size already are returned as they are.
    """
    size = (side, side)
    if tuple(images.shape[2:]) == size:
        return images
    if images.shape[0] == 0:  # the resampling kernels refuse an empty batch
        return images.new_empty((0, images.shape[1], *size))
    # 3 to 10 times as fast as torch's on a CPU; on a GPU there are no figures yet.
    if images.device.type == "cpu" and _extension.available():
        from anchornet_ext.ops import resize_images

        images = resize_images(images, size)
    else:
        images = functional.interpolate(images, size=size, mode="bicubic", align_corners=True)
    return images.contiguous(memory_format=torch.channels_last)

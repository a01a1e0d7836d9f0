"""Specification of `anchornet_ext.ops.gather_patches` and `scatter_patches`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def normalise(crop: Tensor, mean: Tensor | None, std: Tensor | None, dtype: torch.dtype) -> Tensor:
    if mean is None or std is None:
        return crop.to(dtype)
    accumulate = torch.promote_types(dtype, torch.float32)
    value = crop.to(accumulate) / (255 if crop.dtype == torch.uint8 else 1)
    value = (value - mean.to(accumulate)[:, None, None]) / std.to(accumulate)[:, None, None]
    return value.to(dtype)


def gather_patches(
    images: Tensor,
    image_index: Tensor,
    top_left: Tensor,
    patch_size: tuple[int, int],
    mean: Tensor | None = None,
    std: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Crop m is images[image_index[m], :, r:r+h, c:c+w] with (r, c) = top_left[m]."""
    height, width = patch_size
    if dtype is None:
        byte_to_unit = mean is not None and images.dtype == torch.uint8
        dtype = torch.float32 if byte_to_unit else images.dtype
    crops = [
        normalise(images[i, :, r : r + height, c : c + width], mean, std, dtype)
        for i, (r, c) in zip(image_index.tolist(), top_left.tolist(), strict=True)
    ]
    if not crops:
        return images.new_empty((0, images.shape[1], height, width), dtype=dtype)
    return torch.stack(crops)


def scatter_patches(
    patches: Tensor, image_index: Tensor, top_left: Tensor, size: Sequence[int]
) -> Tensor:
    """Zeros of `size` (N, C, H, W) with every patch added at its place, in order of the patches."""
    height, width = patches.shape[-2:]
    accumulate = torch.promote_types(patches.dtype, torch.float32)
    canvas = patches.new_zeros(tuple(size), dtype=accumulate)
    for patch, i, (r, c) in zip(patches, image_index.tolist(), top_left.tolist(), strict=True):
        canvas[i, :, r : r + height, c : c + width] += patch.to(accumulate)
    return canvas.to(patches.dtype)


def scatter_patches_onto(
    base: Tensor, patches: Tensor, image_index: Tensor, top_left: Tensor
) -> Tensor:
    """A copy of `base` (N, C, H, W) with every patch written at its place, the last one on top."""
    height, width = patches.shape[-2:]
    canvas = base.clone()
    for patch, i, (r, c) in zip(patches, image_index.tolist(), top_left.tolist(), strict=True):
        canvas[i, :, r : r + height, c : c + width] = patch
    return canvas

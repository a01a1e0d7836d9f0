"""Batched crops: `gather_patches`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _extension
from ._images import (
    FLOAT_DTYPES,
    check_images,
    empty_result,
    raise_zero_in,
    statistics,
    wants_channels_last,
)
from ._patch_places import call_native, check_patch_fits, flatten_places, patch_size_pair


def gather_patches(
    images: Tensor,
    top_left: Tensor,
    patch_size: int | Sequence[int],
    image_index: Tensor | None = None,
    *,
    mean: Tensor | Sequence[float] | None = None,
    std: Tensor | Sequence[float] | None = None,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format | None = None,
    validate: bool = False,
) -> Tensor:
    """Cuts patches out of a batch of images into one dense batch (Fig. 4 of AnchorNet).

    Patch m is ``images[image_index[m], :, r:r+h, c:c+w]`` with ``(r, c) = top_left[m]``. With
    `mean` and `std` it is normalised on the way: ``(x / 255 - mean) / std`` for uint8 images and
    ``(x - mean) / std`` for floating-point ones, computed in float32 (float64 for float64 output)
    and equal to this formula to the last bit, on every device. Without them values are only cast.

    Differentiable with respect to floating-point images, any number of times.

    Args:
        images: (N, C, H, W) uint8, float32, float64, float16 or bfloat16, with any strides.
        top_left: (M, 2) int64, (row, column) of each patch's first pixel. Without `image_index`:
            (N, 2), one patch of each image, or (N, k, 2), M = N k, patches of image 0 first.
        patch_size: (h, w) in pixels, or one number for both. At least 1, at most the image.
        image_index: (M,) int64, the image of each patch.
        mean: (C,) floating point, in units of [0, 1] for uint8 images; together with `std`. It is a
            constant here: it may not require a gradient.
        std: (C,) likewise, without a zero. Give both as tensors on the images' device inside a CUDA
            graph: numbers have to be copied there, which a capture does not allow.
        dtype: of the patches; by default that of the images, or float32 for normalised uint8.
            uint8 images may stay uint8 or become floating point; floating point stays so.
        memory_format: torch.contiguous_format or torch.channels_last; by default that of the images
            (channels_last when they are so and are not contiguous as well).
        validate: check the places before anything runs, which on CUDA waits for the device. On the
            CPU they are always checked. On CUDA without `validate`, a patch that would leave its
            image is moved to the nearest place inside (and a wrong image number to the nearest
            image): no memory outside is read, and no error is raised. Neither this nor mean and std
            on CUDA can be checked inside torch.compile; leave `validate` off there.

    Returns:
        (M, C, h, w) `dtype`, in `memory_format`. Autocast does not change the dtype: nothing is
        computed that a lower precision would speed up.

    Raises:
        ValueError: a shape, size, device or memory format that does not fit, a patch outside of its
            image, a zero in `std`.
        TypeError: a dtype that is not supported.
        ImportError: the native library is missing.
    """
    check_images(images)
    _extension.require_device(images.device)
    size = patch_size_pair(patch_size)
    num_images, _, height, width = images.shape
    check_patch_fits(size, (height, width))
    index, corners = flatten_places(top_left, image_index, num_images, images.device)
    dtype = _patch_dtype(images.dtype, dtype, mean is not None)
    means, stds = statistics("gather_patches", mean, std, images, dtype, validate)
    channels_last = wants_channels_last(images, memory_format)
    try:
        return call_native(
            torch.ops.anchornet_ext.gather_patches.default,
            (images, index, corners, *size, means, stds, dtype, channels_last),
            (index, corners, size, (num_images, height, width)),
            validate,
        )
    except RuntimeError:
        if stds is not None and stds.device.type == "cpu":
            raise_zero_in(stds)
        raise


def _patch_dtype(images: torch.dtype, dtype: torch.dtype | None, normalises: bool) -> torch.dtype:
    if dtype is None:
        return torch.float32 if normalises and images == torch.uint8 else images
    if dtype in FLOAT_DTYPES:
        return dtype
    if dtype == torch.uint8 and images == torch.uint8 and not normalises:
        return dtype
    what = "normalised images" if normalises else f"{images} images"
    raise TypeError(f"dtype for {what} cannot be {dtype}")


def _fake(
    images: Tensor,
    image_index: Tensor,
    top_left: Tensor,
    patch_height: int,
    patch_width: int,
    mean: Tensor | None,
    std: Tensor | None,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    size = (top_left.shape[0], images.shape[1], patch_height, patch_width)
    return empty_result(size, images, dtype, channels_last)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    images, image_index, top_left, _, _, _, std, _, _ = inputs
    ctx.save_for_backward(image_index, top_left, std)
    ctx.size, ctx.dtype = images.shape, images.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """d patch / d image = 1 / std, added up where patches overlap."""
    image_index, top_left, std = ctx.saved_tensors
    num_images, _, height, width = ctx.size
    if std is not None:
        grad = grad.to(torch.promote_types(grad.dtype, torch.float32))
        grad = grad / std.to(grad.dtype)[:, None, None]
    # The sum over patches in the wider of the two types, then once to that of the images.
    grad = grad.to(torch.promote_types(grad.dtype, ctx.dtype))
    grad_images = torch.ops.anchornet_ext.scatter_patches.default(
        grad, image_index, top_left, num_images, height, width
    )
    return grad_images.to(ctx.dtype), *(None,) * 8


if _extension.available():
    torch.library.register_fake("anchornet_ext::gather_patches", _fake)
    torch.library.register_autograd("anchornet_ext::gather_patches", _backward, setup_context=_save)

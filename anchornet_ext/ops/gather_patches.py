"""Batched crops: `gather_patches`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _extension
from ._calls import numbers
from ._patch_places import (
    call_native,
    check_patch_fits,
    flatten_places,
    is_channels_last_only,
    patch_size_pair,
)

_FLOAT_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


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
    _check_images(images)
    _extension.require_device(images.device)
    size = patch_size_pair(patch_size)
    num_images, _, height, width = images.shape
    check_patch_fits(size, (height, width))
    index, corners = flatten_places(top_left, image_index, num_images, images.device)
    if (mean is None) != (std is None):
        raise ValueError("mean and std must be given together")
    normalises = mean is not None
    dtype = _patch_dtype(images.dtype, dtype, normalises)
    means = _statistic("mean", mean, images, dtype)
    stds = _statistic("std", std, images, dtype)
    channels_last = _is_channels_last(images, memory_format)
    if std is not None and (validate or not isinstance(std, Tensor) or std.device.type == "cpu"):
        _check_no_zero(std, kernel_checks=images.device.type == "cpu")
    try:
        return call_native(
            torch.ops.anchornet_ext.gather_patches.default,
            (images, index, corners, *size, means, stds, dtype, channels_last),
            (index, corners, size, (num_images, height, width)),
            validate,
        )
    except RuntimeError:
        if stds is not None and stds.device.type == "cpu":
            _check_no_zero(stds)
        raise


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor, got {type(images).__name__}")
    if images.dtype != torch.uint8 and images.dtype not in _FLOAT_DTYPES:
        raise TypeError(f"images must be uint8 or floating point, got {images.dtype}")
    if images.dim() != 4:
        raise ValueError(f"images must be (N, C, H, W), got {tuple(images.shape)}")


def _patch_dtype(images: torch.dtype, dtype: torch.dtype | None, normalises: bool) -> torch.dtype:
    if dtype is None:
        return torch.float32 if normalises and images == torch.uint8 else images
    if dtype in _FLOAT_DTYPES:
        return dtype
    if dtype == torch.uint8 and images == torch.uint8 and not normalises:
        return dtype
    what = "normalised images" if normalises else f"{images} images"
    raise TypeError(f"dtype for {what} cannot be {dtype}")


def _statistic(
    name: str, value: Tensor | Sequence[float] | None, images: Tensor, dtype: torch.dtype
) -> Tensor | None:
    """`value` on the device of the images, where it was given."""
    if value is None:
        return None
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    if not isinstance(value, Tensor):
        value = numbers(value, accumulate, images)
    if value.requires_grad:
        raise ValueError(f"{name} is a constant of gather_patches, but it requires a gradient")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {value.dtype}")
    if value.dim() != 1 or value.shape[0] != images.shape[1]:
        raise ValueError(
            f"{name} must be (C,) with C = {images.shape[1]}, got {tuple(value.shape)}"
        )
    return value if value.device == images.device else value.to(images.device)


def _check_no_zero(std: Tensor | Sequence[float], kernel_checks: bool = False) -> None:
    """Reads `std`, unless it is a tensor that the CPU kernel will look at.

    Only when that one refuses is it looked up here, to raise a ValueError, so that good calls do
    not pay for the check twice.
    """
    if isinstance(std, Tensor):
        if kernel_checks or torch.compiler.is_compiling():
            return
        std = std.tolist()
    if 0 in std:
        raise ValueError(f"std must not be zero, got {[float(value) for value in std]}")


def _is_channels_last(images: Tensor, memory_format: torch.memory_format | None) -> bool:
    if memory_format is None:
        return is_channels_last_only(images)
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise ValueError(
            "memory_format must be torch.contiguous_format, torch.channels_last or None, "
            f"got {memory_format}"
        )
    return memory_format == torch.channels_last


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
    return torch.empty(
        (image_index.shape[0], images.shape[1], patch_height, patch_width),
        dtype=dtype,
        device=images.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )


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

"""Whole images made small: `resize_images`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _extension
from ._calls import call
from ._images import (
    FLOAT_DTYPES,
    check_images,
    empty_result,
    raise_zero_in,
    statistics,
    wants_channels_last,
)


def resize_images(
    images: Tensor,
    size: int | Sequence[int],
    *,
    mean: Tensor | Sequence[float] | None = None,
    std: Tensor | Sequence[float] | None = None,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format | None = None,
    validate: bool = False,
) -> Tensor:
    """Resizes a batch of images, bicubic with corners aligned (the glance of section 3.4).

    ``functional.interpolate(images, size, mode="bicubic", align_corners=True)`` up to rounding,
    without antialiasing, for uint8 images as well: with `mean` and `std` these are normalised,
    ``(x / 255 - mean) / std``, and no floating-point image of the full size is ever made.
    Floating-point images become ``(x - mean) / std``. Computed in float32 (float64 if the images or
    the result are).

    Differentiable with respect to floating-point images, any number of times.

    Args:
        images: (N, C, H, W) uint8, float32, float64, float16 or bfloat16, with any strides;
            contiguous and channels_last are read at full speed.
        size: (height, width) of the result in pixels, or one number for both. At least 1.
        mean: (C,) floating point, in units of [0, 1] for uint8 images; together with `std`. It is a
            constant here: it may not require a gradient.
        std: (C,) likewise, without a zero.
        dtype: of the result, floating point; by default that of the images, or float32 for uint8.
        memory_format: torch.contiguous_format or torch.channels_last; by default that of the images
            (channels_last when they are so and are not contiguous as well).
        validate: look for a zero in a `std` on a CUDA device, which waits for it.

    Returns:
        (N, C, height, width) `dtype`, in `memory_format`. Autocast does not change the dtype.

    Raises:
        ValueError: a shape, size or memory format that does not fit, a zero in `std`.
        TypeError: a dtype that is not supported.
        ImportError: the native library is missing.
    """
    check_images(images)
    _extension.require_device(images.device)
    height, width = _size_pair(size)
    if images.shape[2] < 1 or images.shape[3] < 1:
        raise ValueError(f"images must have pixels, got shape {tuple(images.shape)}")
    if dtype is None:
        dtype = torch.float32 if images.dtype == torch.uint8 else images.dtype
    if dtype not in FLOAT_DTYPES:
        raise TypeError(f"dtype must be floating point, got {dtype}")
    means, stds = statistics("resize_images", mean, std, images, dtype, validate)
    channels_last = wants_channels_last(images, memory_format)
    op = torch.ops.anchornet_ext.resize_images.default
    try:
        result: Tensor = call(op, images, height, width, means, stds, dtype, channels_last)
    except RuntimeError:
        if stds is not None and stds.device.type == "cpu":
            raise_zero_in(stds)
        raise
    return result


def _size_pair(size: int | Sequence[int]) -> tuple[int, int]:
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or pair[0] < 1 or pair[1] < 1:
        raise ValueError(f"size must be at least 1, or (height, width) of at least 1, got {size!r}")
    return pair[0], pair[1]


def _fake(
    images: Tensor,
    height: int,
    width: int,
    mean: Tensor | None,
    std: Tensor | None,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    return empty_result((*images.shape[:2], height, width), images, dtype, channels_last)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    images, _, _, _, std, _, _ = inputs
    ctx.save_for_backward(std)
    ctx.size, ctx.dtype = images.shape, images.dtype


def _weights(size: int, out: int, like: Tensor) -> Tensor:
    """(out, size): row i holds the weights that make output pixel i, see csrc/ops/resize_images.h.

    Of pixels -2, ..., size + 1 at first; those outside of the image are then added to its border.
    """
    place = torch.arange(out, dtype=like.dtype, device=like.device) * ((size - 1) / max(out - 1, 1))
    pixel = torch.arange(-2, size + 2, dtype=like.dtype, device=like.device)
    x = (place[:, None] - pixel).abs()  # (out, size + 4)
    near = (1.25 * x - 2.25) * x * x + 1
    far = ((-0.75 * x + 3.75) * x - 6) * x + 3
    weight = torch.where(x <= 1, near, torch.where(x < 2, far, 0))
    first = weight[:, :3].sum(1, keepdim=True)
    if size == 1:
        return weight.sum(1, keepdim=True)
    last = weight[:, size + 1 :].sum(1, keepdim=True)
    return torch.cat((first, weight[:, 3 : size + 1], last), dim=1)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The weights transposed, in the wider of the two types."""
    (std,) = ctx.saved_tensors
    wide = torch.promote_types(torch.promote_types(grad.dtype, ctx.dtype), torch.float32)
    grad = grad.to(wide)
    if std is not None:
        grad = grad / std.to(wide)[:, None, None]
    rows = _weights(ctx.size[2], grad.shape[2], grad)
    columns = _weights(ctx.size[3], grad.shape[3], grad)
    grad_images = torch.einsum("yh,ncyx,xw->nchw", rows, grad, columns)
    return grad_images.to(ctx.dtype), *(None,) * 6


if _extension.available():
    torch.library.register_fake("anchornet_ext::resize_images", _fake)
    torch.library.register_autograd("anchornet_ext::resize_images", _backward, setup_context=_save)

"""The inverse of `gather_patches`: `scatter_patches` and `scatter_patches_onto`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _extension
from ._images import is_channels_last_only
from ._patch_places import call_native, check_patch_fits, flatten_places

_FLOAT_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def scatter_patches(
    patches: Tensor,
    top_left: Tensor,
    size: Sequence[int],
    image_index: Tensor | None = None,
    *,
    validate: bool = False,
) -> Tensor:
    """Adds patches to images of zeros, each at its place (SAR, Fig. 3; the gradient of a gather).

    Where patches overlap, their values are summed in the order of the patches, in float32 (float64
    for float64 patches), whatever the number of threads and on every device: the same bits each
    time. Differentiable with respect to the patches, any number of times.

    Args:
        patches: (M, C, h, w) float32, float64, float16 or bfloat16, with any strides.
        top_left: (M, 2) int64, (row, column) of each patch's first pixel. Without `image_index`:
            (N, 2), one patch of each image, or (N, k, 2), M = N k, patches of image 0 first.
        size: (N, C, H, W) of the images.
        image_index: (M,) int64, the image of each patch.
        validate: check the places before anything runs, which on CUDA waits for the device. On the
            CPU they are always checked. On CUDA without `validate`, a patch that would leave its
            image is moved to the nearest place inside, and no error is raised.

    Returns:
        (N, C, H, W) in the patches' dtype; channels_last if the patches are (and are not contiguous
        as well), else contiguous. Autocast does not change the dtype.

    Raises:
        ValueError: a shape or device that does not fit, a patch outside of its image.
        TypeError: a dtype that is not supported.
        ImportError: the native library is missing.
    """
    _check_patches(patches)
    if patches.dtype not in _FLOAT_DTYPES:
        raise TypeError(f"patches must be floating point, got {patches.dtype}")
    _extension.require_device(patches.device)
    if len(size) != 4 or size[0] < 0 or size[2] < 1 or size[3] < 1:
        raise ValueError(f"size must be (N, C, H, W) with at least one pixel, got {tuple(size)}")
    num_images, channels, height, width = size
    if patches.shape[1] != channels:
        raise ValueError(f"size has {channels} channels, the patches have {patches.shape[1]}")
    index, corners = _places(patches, top_left, image_index, num_images, (height, width))
    return call_native(
        torch.ops.anchornet_ext.scatter_patches.default,
        (patches, index, corners, num_images, height, width),
        (index, corners, (patches.shape[2], patches.shape[3]), (num_images, height, width)),
        validate,
    )


def scatter_patches_onto(
    base: Tensor,
    patches: Tensor,
    top_left: Tensor,
    image_index: Tensor | None = None,
    *,
    validate: bool = False,
) -> Tensor:
    """Writes patches over a copy of `base`, each at its place, the last one on top.

    Values are copied, not computed. Differentiable with respect to `base` (where no patch lies) and
    `patches` (where no later patch lies), any number of times.

    Args:
        base: (N, C, H, W) uint8, float32, float64, float16 or bfloat16, with any strides.
        patches: (M, C, h, w) in the dtype of `base`, with any strides.
        top_left: (M, 2) int64, (row, column) of each patch's first pixel. Without `image_index`:
            (N, 2), one patch of each image, or (N, k, 2), M = N k, patches of image 0 first.
        image_index: (M,) int64, the image of each patch.
        validate: as in `scatter_patches`.

    Returns:
        (N, C, H, W); channels_last if the base is (and is not contiguous as well), else contiguous.

    Raises:
        ValueError: a shape or device that does not fit, a patch outside of its image.
        TypeError: a dtype that is not supported.
        ImportError: the native library is missing.
    """
    if not isinstance(base, Tensor):
        raise TypeError(f"base must be a tensor, got {type(base).__name__}")
    if base.dtype != torch.uint8 and base.dtype not in _FLOAT_DTYPES:
        raise TypeError(f"base must be uint8 or floating point, got {base.dtype}")
    if base.dim() != 4 or base.shape[2] < 1 or base.shape[3] < 1:
        raise ValueError(
            f"base must be (N, C, H, W) with at least one pixel, got {tuple(base.shape)}"
        )
    _check_patches(patches)
    if patches.dtype != base.dtype:
        raise TypeError(f"patches must be {base.dtype} like the base, got {patches.dtype}")
    if patches.device != base.device:
        raise ValueError(f"patches are on {patches.device}, the base is on {base.device}")
    _extension.require_device(base.device)
    num_images, channels, height, width = base.shape
    if patches.shape[1] != channels:
        raise ValueError(f"base has {channels} channels, the patches have {patches.shape[1]}")
    index, corners = _places(patches, top_left, image_index, num_images, (height, width))
    return call_native(
        torch.ops.anchornet_ext.scatter_patches_onto.default,
        (base, patches, index, corners),
        (index, corners, (patches.shape[2], patches.shape[3]), (num_images, height, width)),
        validate,
    )


def _check_patches(patches: Tensor) -> None:
    if not isinstance(patches, Tensor):
        raise TypeError(f"patches must be a tensor, got {type(patches).__name__}")
    if patches.dim() != 4:
        raise ValueError(f"patches must be (M, C, h, w), got {tuple(patches.shape)}")


def _places(
    patches: Tensor,
    top_left: Tensor,
    image_index: Tensor | None,
    num_images: int,
    image_size: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """image_index and top_left (M, 2), see `flatten_places`, for as many patches as there are."""
    check_patch_fits((patches.shape[2], patches.shape[3]), image_size)
    index, corners = flatten_places(top_left, image_index, num_images, patches.device)
    if corners.shape[0] != patches.shape[0]:
        raise ValueError(f"there are {patches.shape[0]} patches but {corners.shape[0]} places")
    return index, corners


def _like(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """An empty tensor in the memory format of `tensor`."""
    channels_last = is_channels_last_only(tensor)
    return torch.empty(
        tuple(shape),
        dtype=tensor.dtype,
        device=tensor.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )


def _fake_sum(
    patches: Tensor,
    image_index: Tensor,
    top_left: Tensor,
    num_images: int,
    height: int,
    width: int,
) -> Tensor:
    return _like(patches, (num_images, patches.shape[1], height, width))


def _fake_onto(base: Tensor, patches: Tensor, image_index: Tensor, top_left: Tensor) -> Tensor:
    return _like(base, base.shape)


def _gather(images: Tensor, image_index: Tensor, top_left: Tensor, size: Sequence[int]) -> Tensor:
    channels_last = is_channels_last_only(images)
    patches: Tensor = torch.ops.anchornet_ext.gather_patches.default(
        images, image_index, top_left, *size, None, None, images.dtype, channels_last
    )
    return patches


def _save_sum(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    patches, image_index, top_left, *_ = inputs
    ctx.save_for_backward(image_index, top_left)
    ctx.patch_size = patches.shape[2:]


def _backward_sum(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Every patch was added as it is, so it gets the gradient at its place."""
    image_index, top_left = ctx.saved_tensors
    return _gather(grad, image_index, top_left, ctx.patch_size), None, None, None, None, None


def _save_onto(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    base, patches, image_index, top_left = inputs
    ctx.save_for_backward(image_index, top_left)
    ctx.size, ctx.patch_size = base.shape, patches.shape[2:]


def _backward_onto(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Every pixel's gradient belongs to what lies on top there: a patch, or the base."""
    image_index, top_left = ctx.saved_tensors
    num_images, _, height, width = ctx.size
    # The number of the patch on top, -1 for the base. float64 counts exactly, and is a type that
    # the operators take.
    number = torch.arange(len(top_left), dtype=torch.float64, device=grad.device)
    number = number[:, None, None, None]  # (M, 1, 1, 1)
    on_top = torch.ops.anchornet_ext.scatter_patches_onto.default(
        grad.new_full((num_images, 1, height, width), -1, dtype=torch.float64),
        number.expand(-1, 1, *ctx.patch_size),
        image_index,
        top_left,
    )
    grad_base = grad_patches = None
    if ctx.needs_input_grad[0]:
        grad_base = torch.where(on_top < 0, grad, 0)
    if ctx.needs_input_grad[1]:
        visible = _gather(on_top, image_index, top_left, ctx.patch_size) == number
        grad_patches = torch.where(visible, _gather(grad, image_index, top_left, ctx.patch_size), 0)
    return grad_base, grad_patches, None, None


if _extension.available():
    torch.library.register_fake("anchornet_ext::scatter_patches", _fake_sum)
    torch.library.register_autograd(
        "anchornet_ext::scatter_patches", _backward_sum, setup_context=_save_sum
    )
    torch.library.register_fake("anchornet_ext::scatter_patches_onto", _fake_onto)
    torch.library.register_autograd(
        "anchornet_ext::scatter_patches_onto", _backward_onto, setup_context=_save_onto
    )

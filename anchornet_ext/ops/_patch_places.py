"""Checks of where patches lie, shared by `gather_patches` and `scatter_patches`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._calls import call, images_in_turn, no_index


def patch_size_pair(patch_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of an int or a pair."""
    pair = (patch_size, patch_size) if isinstance(patch_size, int) else tuple(patch_size)
    if len(pair) != 2:
        raise ValueError(f"patch_size must be an int or (height, width), got {patch_size!r}")
    return pair[0], pair[1]


def check_patch_fits(patch_size: tuple[int, int], image_size: tuple[int, int]) -> None:
    """At least one pixel, at most the image; both are (height, width)."""
    (height, width), (image_height, image_width) = patch_size, image_size
    if height < 1 or width < 1 or height > image_height or width > image_width:
        raise ValueError(
            f"patch size must be between (1, 1) and the image's ({image_height}, {image_width}), "
            f"got ({height}, {width})"
        )


def _check_int64(name: str, value: Tensor, device: torch.device) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, got {value.dtype}")
    if value.device != device:
        raise ValueError(f"{name} is on {value.device}, the images are on {device}")


def flatten_places(
    top_left: Tensor, image_index: Tensor | None, num_images: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """image_index (M,) and top_left (M, 2) from what the caller gave.

    Without `image_index`, top_left (N, 2) or (N, k, 2) has the corners of each image's patches, and
    the patches of image 0 come first. On CUDA the index is then (0,): to write it out would take
    one or two launches of torch's, and the kernels know it.
    """
    _check_int64("top_left", top_left, device)
    shape = tuple(top_left.shape)
    if image_index is None:
        if len(shape) not in (2, 3) or shape[-1] != 2 or shape[0] != num_images:
            raise ValueError(
                f"without image_index, top_left must be (N, 2) or (N, k, 2) with N = {num_images} "
                f"images, got {shape}"
            )
        corners = top_left.reshape(-1, 2) if len(shape) == 3 else top_left
        if device.type == "cuda":
            return no_index(top_left), corners
        return images_in_turn(num_images, shape[1] if len(shape) == 3 else 1, top_left), corners
    _check_int64("image_index", image_index, device)
    if image_index.dim() != 1:
        raise ValueError(f"image_index must be (M,), got {tuple(image_index.shape)}")
    if len(shape) != 2 or shape[1] != 2 or shape[0] != image_index.shape[0]:
        raise ValueError(
            f"top_left must be (M, 2) with M = {image_index.shape[0]} as in image_index, "
            f"got {shape}"
        )
    return image_index, top_left


def check_places(
    image_index: Tensor,
    top_left: Tensor,
    patch_size: tuple[int, int],
    size: tuple[int, int, int],
) -> None:
    """Every patch lies inside an image; `size` is (N, H, W). Reads the tensors: one sync on CUDA.

    An image_index (0,) is what `flatten_places` makes on CUDA.

    Raises:
        ValueError: naming the first patch that does not, its place and the sizes.
    """
    num_images, height, width = size
    if len(image_index) == 0 and num_images > 0:
        image_index = images_in_turn(num_images, len(top_left) // num_images, top_left)
    last_row, last_column = height - patch_size[0], width - patch_size[1]
    row, column = top_left.unbind(1)
    outside = (image_index < 0) | (image_index >= num_images)
    outside |= (row < 0) | (row > last_row) | (column < 0) | (column > last_column)
    # The first patch outside, or none: found with a single read from the device.
    positions = torch.arange(len(outside), device=outside.device)
    bad = torch.where(outside, positions, len(outside))
    found = torch.stack((bad, image_index, row, column), dim=1)
    found = found[torch.argsort(bad, stable=True)[:1]]
    for m, image, r, c in found.tolist():
        if m == len(outside):
            continue
        if not 0 <= image < num_images:
            raise ValueError(
                f"patch {m} has image_index {image}, but there are {num_images} images"
            )
        raise ValueError(
            f"patch {m} at (row, column) = ({r}, {c}) with size {tuple(patch_size)} leaves the "
            f"image of size ({height}, {width})"
        )


def call_native(
    op: Callable[..., Any],
    arguments: tuple[Any, ...],
    places: tuple[Tensor, Tensor, tuple[int, int], tuple[int, int, int]],
    validate: bool,
) -> Tensor:
    """The operator's result; `places` are the arguments of `check_places`.

    The CPU kernels check every place themselves. Only when one fails is it looked up again here, to
    raise it as a ValueError, so that good calls do not pay for the check twice.
    """
    if validate:
        check_places(*places)
    if places[0].is_cuda or torch.compiler.is_compiling():
        return _as_tensor(call(op, *arguments))
    try:
        return _as_tensor(call(op, *arguments))
    except RuntimeError:
        check_places(*places)
        raise


def _as_tensor(value: Any) -> Tensor:
    """torch.ops is untyped."""
    assert isinstance(value, Tensor)
    return value

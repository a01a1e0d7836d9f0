"""Where to look: the most activated patches that overlap little."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from anchornet_ext import _extension

_NAME = "anchornet_ext::select_patches"
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_MAX_PATCH_SIZE = 1 << 26
_MAX_STRIDE = 1 << 31


class PatchSelection(NamedTuple):
    """The patches chosen in each image, in the order in which they were chosen."""

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody needs here
    """(B, k) int64: flat location ``row * w + column`` in the h x w grid."""
    top_left: Tensor
    """(B, k, 2) int64: (row, column) of the patch's first pixel in the image."""
    num_qualified: Tensor
    """(B,) int64: how many patches met their threshold. With thresholds that do not rise from rank
    to rank these are the first ones; the rest fill up."""


def select_patches(
    cam: Tensor,
    num_patches: int,
    patch_size: int,
    stride: int,
    iou_threshold: float | Sequence[float] = 0.3,
) -> PatchSelection:
    """The `num_patches` most activated patches, greedily, that overlap little (section 3.3).

    Location (r, c) of the grid stands for the pixels ``[r * stride, r * stride + patch_size)`` x
    ``[c * stride, c * stride + patch_size)``. Locations are visited in descending activation, equal
    ones by the lower flat index, NaN last. The patch of rank j is the first whose intersection over
    union with every patch chosen before it is below ``iou_threshold[j]``; the first patch always
    qualifies. Where no location does, the rank goes to the location left with the smallest largest
    IoU, equal ones in visiting order.

    CPU, CUDA and `anchornet_ext.reference.select_patches` choose the same locations: the comparison
    is that of float64 IoUs, exact for any threshold.

    Args:
        cam: (B, h, w) activation maps: float32, float64, float16 or bfloat16, of any strides.
        num_patches: k, in [1, h * w].
        patch_size: side of a patch in pixels, in [1, 2**26].
        stride: distance of neighbouring patches in pixels, in [1, 2**31].
        iou_threshold: one value in [0, 1] for all patches, or one for each rank (the one of rank 0
            has no effect).

    Returns:
        `PatchSelection` on the device of `cam`. It holds integers, so nothing is differentiable.

    Raises:
        TypeError: an argument has the wrong type or `cam` the wrong dtype.
        ValueError: an argument is out of range; the message holds the value.
        ImportError: the native library is missing or has no kernels for this device.
    """
    thresholds = _check_arguments(cam, num_patches, patch_size, stride, iou_threshold)
    _extension.require_device(cam.device)
    return PatchSelection(
        *torch.ops.anchornet_ext.select_patches(cam, num_patches, patch_size, stride, thresholds)
    )


def _check_arguments(
    cam: Tensor,
    num_patches: int,
    patch_size: int,
    stride: int,
    iou_threshold: float | Sequence[float],
) -> list[float]:
    """Checks everything and returns the thresholds as a list."""
    if not isinstance(cam, Tensor):
        raise TypeError(f"cam must be a tensor, got {type(cam).__name__}")
    if cam.dtype not in _DTYPES:
        raise TypeError(f"cam must be float32, float64, float16 or bfloat16, got {cam.dtype}")
    if cam.ndim != 3:
        raise ValueError(f"cam must be (B, h, w), got shape {tuple(cam.shape)}")
    integers = {"num_patches": num_patches, "patch_size": patch_size, "stride": stride}
    for name, value in integers.items():
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an int, got {value!r}")
    height, width = cam.shape[1:]
    if not 1 <= num_patches <= height * width:
        raise ValueError(
            f"num_patches must be in [1, {height * width}] for a grid of {height} x {width}, "
            f"got {num_patches}"
        )
    if not 1 <= patch_size <= _MAX_PATCH_SIZE:
        raise ValueError(f"patch_size must be in [1, 2**26], got {patch_size}")
    if not 1 <= stride <= _MAX_STRIDE:
        raise ValueError(f"stride must be in [1, 2**31], got {stride}")
    return _check_thresholds(iou_threshold, num_patches)


def _check_thresholds(iou_threshold: float | Sequence[float], num_patches: int) -> list[float]:
    if isinstance(iou_threshold, (int, float)):
        values = [float(iou_threshold)]
    elif isinstance(iou_threshold, Sequence):
        values = list(iou_threshold)
    else:
        raise TypeError(
            f"iou_threshold must be a float or a sequence of floats, got {iou_threshold!r}"
        )
    if len(values) not in (1, num_patches):
        raise ValueError(
            f"iou_threshold must have 1 or num_patches = {num_patches} values, got {len(values)}"
        )
    for value in values:
        if not isinstance(value, (int, float)):
            raise TypeError(f"iou_threshold must hold floats, got {value!r}")
        if not 0 <= value <= 1:  # false for NaN
            raise ValueError(f"iou_threshold must be in [0, 1], got {value}")
    return [float(value) for value in values]


def _fake(
    cam: Tensor, num_patches: int, patch_size: int, stride: int, iou_threshold: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor]:
    batch = cam.shape[0]
    return (
        cam.new_empty((batch, num_patches), dtype=torch.int64),
        cam.new_empty((batch, num_patches, 2), dtype=torch.int64),
        cam.new_empty((batch,), dtype=torch.int64),
    )


if _extension.available():
    torch.library.register_fake(_NAME, _fake)

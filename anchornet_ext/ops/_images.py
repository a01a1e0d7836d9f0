"""Checks of images and of what normalises them, shared by `gather_patches` and `resize_images`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._calls import numbers

FLOAT_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_images(images: Tensor) -> None:
    """(N, C, H, W), uint8 or floating point."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor, got {type(images).__name__}")
    if images.dtype != torch.uint8 and images.dtype not in FLOAT_DTYPES:
        raise TypeError(f"images must be uint8 or floating point, got {images.dtype}")
    if images.dim() != 4:
        raise ValueError(f"images must be (N, C, H, W), got {tuple(images.shape)}")


def statistics(
    op: str,
    mean: Tensor | Sequence[float] | None,
    std: Tensor | Sequence[float] | None,
    images: Tensor,
    dtype: torch.dtype,
    validate: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Both on the device of the images, or neither.

    A zero in `std` is looked for here, unless that would wait for a device, or the CPU kernel looks
    anyway: see `raise_zero_in`.
    """
    if mean is None or std is None:
        if mean is not std:
            raise ValueError("mean and std must be given together")
        return None, None
    accumulate = torch.float64 if dtype == torch.float64 else torch.float32
    means = _statistic(op, "mean", mean, images, accumulate)
    stds = _statistic(op, "std", std, images, accumulate)
    here = not isinstance(std, Tensor) or std.device.type == "cpu"
    kernel_looks = isinstance(std, Tensor) and images.device.type == "cpu"
    if (here or validate) and not kernel_looks:
        raise_zero_in(std)
    return means, stds


def _statistic(
    op: str,
    name: str,
    value: Tensor | Sequence[float],
    images: Tensor,
    accumulate: torch.dtype,
) -> Tensor:
    if not isinstance(value, Tensor):
        value = numbers(value, accumulate, images)
    if value.requires_grad:
        raise ValueError(f"{name} is a constant of {op}, but it requires a gradient")
    if not value.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {value.dtype}")
    if value.dim() != 1 or value.shape[0] != images.shape[1]:
        raise ValueError(
            f"{name} must be (C,) with C = {images.shape[1]}, got {tuple(value.shape)}"
        )
    return value if value.device == images.device else value.to(images.device)


def raise_zero_in(std: Tensor | Sequence[float] | None) -> None:
    """ValueError if there is one. Reads a tensor, which waits for a device.

    The kernels on the CPU refuse a zero themselves. Only then is it looked up here as well, so that
    good calls do not pay for the check twice.
    """
    if isinstance(std, Tensor):
        if torch.compiler.is_compiling():
            return
        std = std.tolist()
    if std is not None and 0 in std:
        raise ValueError(f"std must not be zero, got {[float(value) for value in std]}")


def is_channels_last_only(tensor: Tensor) -> bool:
    """channels_last and not contiguous as well, as a tensor with one channel can be."""
    return not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def wants_channels_last(images: Tensor, memory_format: torch.memory_format | None) -> bool:
    """Of the result: as it was asked for, or as the images are."""
    if memory_format is None:
        return is_channels_last_only(images)
    if memory_format not in (torch.contiguous_format, torch.channels_last):
        raise ValueError(
            "memory_format must be torch.contiguous_format, torch.channels_last or None, "
            f"got {memory_format}"
        )
    return memory_format == torch.channels_last


def empty_result(
    size: tuple[int, ...], images: Tensor, dtype: torch.dtype, channels_last: bool
) -> Tensor:
    """What the kernels return, without its values."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(size, dtype=dtype, device=images.device, memory_format=layout)

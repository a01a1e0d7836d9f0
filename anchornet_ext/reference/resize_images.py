"""Specification of `anchornet_ext.ops.resize_images`."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .patches import normalise

_A = -0.75  # of Keys' cubic convolution, as torch and OpenCV have it


def _weight(distance: float) -> float:
    """How much a pixel counts at this distance from the place that is asked for."""
    x = abs(distance)
    if x <= 1:
        return (_A + 2) * x**3 - (_A + 3) * x**2 + 1
    if x < 2:
        return _A * x**3 - 5 * _A * x**2 + 8 * _A * x - 4 * _A
    return 0.0


def _weights(size: int, out: int, wide: torch.dtype) -> Tensor:
    """(out, size) float64: row i holds the weights that make output pixel i.

    Pixels outside of the image are those of its border. Where a pixel lies is computed in `wide`,
    as torch does: in float32 the places of a large image are some 1e-5 pixels off.
    """
    matrix = torch.zeros(out, size, dtype=torch.float64)
    step = torch.tensor(size - 1, dtype=wide) / max(out - 1, 1)
    for i in range(out):
        place = float(step * i) if out > 1 else 0.0
        for pixel in range(math.floor(place) - 1, math.floor(place) + 3):
            matrix[i, min(max(pixel, 0), size - 1)] += _weight(place - pixel)
    return matrix


def resize_images(
    images: Tensor,
    size: tuple[int, int],
    mean: Tensor | None = None,
    std: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The images (N, C, H, W), normalised, then times the weights of their rows and columns.

    The sums are taken in float64 and rounded once: to `dtype`, by default that of floating-point
    images and float32 for uint8.
    """
    if dtype is None:
        dtype = images.dtype if images.is_floating_point() else torch.float32
    values = normalise(images, mean, std, torch.float64)
    wide = torch.float64 if torch.float64 in (images.dtype, dtype) else torch.float32
    rows = _weights(images.shape[2], size[0], wide).to(images.device)
    columns = _weights(images.shape[3], size[1], wide).to(images.device)
    return torch.einsum("yh,nchw,xw->ncyx", rows, values, columns).to(dtype)

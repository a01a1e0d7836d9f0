"""Which pixels a location of a feature map sees: Eq. 1, grids, boxes, and any network's field.

Without padding, location (r, c) of a map sees the pixels of rows ``[o + r * S, o + r * S + K)``,
and of columns alike, with one size K, stride S and offset o for the whole map: the map is a grid of
patches (section 3.1). Boxes are half-open, in pixels, rows before columns.

Squeeze-and-excitation is the exception. It scales every channel by a gate computed from the mean
over the whole map, so that a location sees only its patch *given the gates*, while each gate sees
the whole image. The functions here that read a network want such gates to be declared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from anchornet_ext._field_tracing import FieldTracing, NotAGrid, Pair
from anchornet_ext._meta import meta_images, meta_twin


@dataclass(frozen=True)
class ReceptiveField:
    """The grid of patches that a feature map stands for. All pairs are (row, column) in pixels."""

    size: Pair
    """Height and width of the patch that one location sees."""
    stride: Pair
    """Distance of the patches of neighbouring locations."""
    offset: Pair = (0, 0)
    """First pixel of the patch of location (0, 0)."""

    def boxes(self, locations: Tensor) -> Tensor:
        """Boxes (..., 4) of locations (..., 2); see `boxes`."""
        return boxes(locations, self.size, self.stride, self.offset)


class Layer(NamedTuple):
    """Receptive field size and stride accumulated up to a layer (K_l and S_l of Eq. 1)."""

    size: int
    stride: int


def accumulate(kernel_sizes: Sequence[int], strides: Sequence[int]) -> list[Layer]:
    """Eq. 1 along a chain of convolutions or pools without padding.

    K_1 = k_1, S_1 = s_1, K_l = K_{l-1} + (k_l - 1) S_{l-1}, S_l = S_{l-1} s_l.

    A dilated kernel counts with its extent, ``(k - 1) * dilation + 1``.

    Args:
        kernel_sizes: k_1, k_2, ... in pixels of the layer's input.
        strides: s_1, s_2, ...

    Returns:
        (K_l, S_l) for each layer.

    Raises:
        ValueError: the lists differ in length, or a value is below 1.
    """
    if len(kernel_sizes) != len(strides):
        raise ValueError(f"{len(kernel_sizes)} kernel sizes, but {len(strides)} strides")
    layers: list[Layer] = []
    size = stride = 1
    for kernel, step in zip(kernel_sizes, strides, strict=True):
        if kernel < 1 or step < 1:
            raise ValueError(f"kernel sizes and strides must be at least 1, got {kernel}, {step}")
        size += (kernel - 1) * stride
        stride *= step
        layers.append(Layer(size, stride))
    return layers


def grid_size(image_size: int | Pair, patch_size: int | Pair, stride: int | Pair) -> Pair:
    """Rows and columns of the grid of patches in an image: floor((H - K) / S) + 1, and W alike.

    Args:
        image_size, patch_size, stride: in pixels; an int means both sides.

    Raises:
        ValueError: a value is below 1, or the patch is larger than the image.
    """
    (height, width), patch, step = _pair(image_size), _pair(patch_size), _pair(stride)
    for name, (a, b) in (("image_size", (height, width)), ("patch_size", patch), ("stride", step)):
        if a < 1 or b < 1:
            raise ValueError(f"{name} must be at least 1, got {(a, b)}")
    if patch[0] > height or patch[1] > width:
        raise ValueError(f"a patch of {patch} does not fit into an image of {(height, width)}")
    return (height - patch[0]) // step[0] + 1, (width - patch[1]) // step[1] + 1


def boxes(
    locations: Tensor, patch_size: int | Pair, stride: int | Pair, offset: int | Pair = 0
) -> Tensor:
    """The pixels behind locations of a map.

    Args:
        locations: (..., 2) integers, (row, column) in the grid.
        patch_size, stride, offset: in pixels; an int means both sides.

    Returns:
        (..., 4) of the dtype of `locations`: top, left, bottom, right; bottom and right excluded.

    Raises:
        ValueError: the last dimension is not 2, or a size or stride is below 1.
        TypeError: `locations` are not integers.
    """
    if locations.dim() < 1 or locations.shape[-1] != 2:
        raise ValueError(f"locations must be (..., 2), got {tuple(locations.shape)}")
    if locations.is_floating_point() or locations.is_complex() or locations.dtype == torch.bool:
        raise TypeError(f"locations must be integers, got {locations.dtype}")
    patch, step, first = _pair(patch_size), _pair(stride), _pair(offset)
    for name, pair in (("patch_size", patch), ("stride", step)):
        if min(pair) < 1:
            raise ValueError(f"{name} must be at least 1, got {pair}")
    top_left = locations * locations.new_tensor(step) + locations.new_tensor(first)
    return torch.cat((top_left, top_left + locations.new_tensor(patch)), dim=-1)


def _pair(value: int | Pair) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def probe(
    function: Callable[[Tensor], Tensor], images: Tensor, location: Pair
) -> tuple[int, int, int, int] | None:
    """The pixels on which one location depends at these images, by gradient.

    This measures where `receptive_field` proves: it works for every differentiable function, padded
    or not, but sees only what has a gradient at `images` (a ReLU that is shut hides its inputs).
    Gates count as everything else does, unless `function` holds them fixed.

    Args:
        function: from images to a map (B, C, h, w).
        images: (B, C, H, W), floating point.
        location: (row, column) in the map.

    Returns:
        The smallest box (top, left, bottom, right) that holds every pixel with a gradient in some
        image and channel, half-open; None where there is no such pixel.

    Raises:
        ValueError: `location` is outside the map, or the output is no map.
    """
    images = images.detach().requires_grad_()
    with torch.enable_grad():
        output = function(images)
        if output.dim() != 4:
            raise ValueError(f"expected a map (B, C, h, w), got {tuple(output.shape)}")
        row, column = location
        if not (0 <= row < output.shape[2] and 0 <= column < output.shape[3]):
            raise ValueError(f"location {location} is outside the map {tuple(output.shape[2:])}")
        chosen = output[:, :, row, column]
        if not chosen.requires_grad:
            return None
        # Random weights: with equal ones, batch norm and symmetric filters could cancel.
        (gradient,) = torch.autograd.grad(
            chosen, images, torch.randn_like(chosen), materialize_grads=True
        )
    touched = (gradient != 0).any(dim=1).any(dim=0)  # (H, W)
    rows, columns = touched.any(dim=1).nonzero(), touched.any(dim=0).nonzero()
    if not len(rows):
        return None
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def receptive_field(
    module: nn.Module,
    input_size: Sequence[int],
    *,
    method: str = "forward",
    gates: Iterable[type[nn.Module]] = (),
) -> ReceptiveField:
    """The exact receptive field of a network without padding, or why it has none.

    A copy of `module` without weights runs on the meta device in evaluation mode, and every
    operator that touches something computed from the image is followed: convolutions and pools of
    any kernel, stride, dilation and groups, crops, residual and concatenated branches, everything
    elementwise, batch norm, and whatever only mixes channels. The field is the smallest box that
    holds all pixels a location depends on (a dilated kernel leaves gaps inside).

    Args:
        module: the network.
        input_size: (C, H, W) of an image that it takes.
        method: the method that gives the map (B, C, h, w); "features" for AnchorNet.
        gates: types of modules, such as squeeze-and-excitation, in which a pooling over the whole
            map is taken as a constant. Then the answer holds with those gates held fixed.

    Raises:
        ValueError: a layer breaks the grid. The message names it and says why: padding, pooling
            over the whole map outside `gates`, attention, upsampling, statistics of the batch, an
            operator that is not known to treat all locations alike, ... Also where `module` does
            not take images of `input_size`, or does not return a map that depends on them.
        TypeError: `module` is no plain module.
    """
    if len(input_size) != 3 or min(input_size) < 1:
        raise ValueError(f"input_size must be (C, H, W), all positive, got {tuple(input_size)}")
    twin = meta_twin(module)
    images = meta_images(twin, (1, *input_size))
    tracing = FieldTracing(twin, images, tuple(gates))
    try:
        with torch.no_grad(), tracing:
            output = getattr(twin, method)(images)
    except NotAGrid as error:
        raise ValueError(str(error)) from None
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"{type(twin).__name__}.{method} does not take images of {tuple(input_size)}: {error}"
        ) from error
    field = tracing.field_of(output)
    if field is None:
        raise ValueError(
            f"{type(twin).__name__}.{method} does not return a map that depends on the images"
        )
    return ReceptiveField(field.size, field.stride, field.offset)

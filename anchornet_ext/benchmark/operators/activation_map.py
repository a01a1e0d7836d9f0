"""Cases of `class_activation_map`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from anchornet_ext import ops, reference

from ..harness import Case, Contenders, Options, Work
from .case import operator_case
from .setting import (
    LAYOUTS,
    NUM_CLASSES,
    OURS,
    batches_and_caches,
    floats,
    grid_side,
    name_of,
    sizes,
)

#: AnchorNet's features as they are used, and as Eq. 2 is written.
CHANNELS = (96, 512)
#: The maps of all classes together may take so many bytes.
_ALL_CLASSES_LIMIT = 64 << 20


def einsum(features: Tensor, weight: Tensor, class_index: Tensor) -> Tensor:
    """The usual code: gather the rows, then one contraction."""
    return torch.einsum("bc,bchw->bhw", weight[class_index].to(features.dtype), features)


def matmul(features: Tensor, weight: Tensor, class_index: Tensor) -> Tensor:
    """The same as a batched matrix product."""
    batch, channels, height, width = features.shape
    rows = weight[class_index].to(features.dtype)[:, None]  # (B, 1, C)
    return (rows @ features.reshape(batch, channels, -1)).view(batch, height, width)


def all_classes(features: Tensor, weight: Tensor, class_index: Tensor) -> Tensor:
    """The maps of all classes by a 1 x 1 convolution, then the wanted one: the authors' way."""
    maps = torch.nn.functional.conv2d(features, weight.to(features.dtype)[:, :, None, None])
    return maps[torch.arange(len(maps), device=maps.device), class_index]


def cases(options: Options) -> Iterator[Case]:
    device = options.device
    for size in sizes(options):
        for batch, cold in batches_and_caches(options, (1, 32, 256)):
            for channels in CHANNELS[:1] if options.quick else CHANNELS:
                for dtype in floats(options):
                    for layout in LAYOUTS:
                        # 256 images would need 296 MB, and half-precision convolutions on a CPU
                        # take seconds.
                        numel = batch * NUM_CLASSES * grid_side(size) ** 2
                        fits = 4 * numel <= _ALL_CLASSES_LIMIT
                        every = fits and (dtype == torch.float32 or device.type != "cpu")
                        shape = (batch, channels, grid_side(size), grid_side(size))
                        yield operator_case(
                            "class_activation_map",
                            {
                                "size": size,
                                "channels": channels,
                                "dtype": name_of(dtype),
                                "layout": layout,
                            },
                            partial(_build, shape, dtype, layout, every, device),
                            batch=batch,
                            cold=cold,
                            work=Work(read=batch * channels * shape[2] * shape[3] * dtype.itemsize),
                            over=("einsum", "matmul", "all classes"),
                        )


def _build(
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    layout: str,
    every: bool,
    device: torch.device,
) -> Contenders:
    features = torch.randn(shape, device=device).to(dtype)
    features = features.contiguous(memory_format=LAYOUTS[layout])
    weight = torch.randn(NUM_CLASSES, shape[1], device=device).to(dtype)
    class_index = torch.randint(NUM_CLASSES, shape[:1], device=device)
    contenders = {
        OURS: ops.class_activation_map,
        "reference": reference.class_activation_map,
        "einsum": einsum,
        "matmul": matmul,
    }
    if every:
        contenders["all classes"] = all_classes
    return {name: partial(call, features, weight, class_index) for name, call in contenders.items()}

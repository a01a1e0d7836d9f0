"""Cases of `scatter_patches` and `scatter_patches_onto`."""

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
    NUM_PATCHES,
    OURS,
    PATCH_SIZE,
    batches_and_caches,
    floats,
    name_of,
    places,
    sizes,
)


def cases(options: Options) -> Iterator[Case]:
    for size in sizes(options):
        for batch, cold in batches_and_caches(options, (1, 8, 32)):
            for dtype in floats(options):
                for layout in LAYOUTS:
                    for operator, build in BUILD.items():
                        patch_bytes = batch * NUM_PATCHES * 3 * PATCH_SIZE**2 * dtype.itemsize
                        image_bytes = batch * 3 * size**2 * dtype.itemsize
                        onto = operator == "scatter_patches_onto"
                        yield operator_case(
                            operator,
                            {"size": size, "dtype": name_of(dtype), "layout": layout},
                            partial(build, batch, size, dtype, layout, options.device),
                            batch=batch,
                            cold=cold,
                            work=Work(
                                read=patch_bytes + (image_bytes if onto else 0),
                                written=image_bytes,
                            ),
                            over=("loop",),
                        )


def _patches(batch: int, dtype: torch.dtype, layout: str, device: torch.device) -> Tensor:
    shape = (batch * NUM_PATCHES, 3, PATCH_SIZE, PATCH_SIZE)
    patches = torch.randn(shape, device=device).to(dtype)
    return patches.contiguous(memory_format=LAYOUTS[layout])


def _sum(
    batch: int, size: int, dtype: torch.dtype, layout: str, device: torch.device
) -> Contenders:
    index, corners = places(batch, size, device)
    where = list(zip(index.tolist(), corners.tolist(), strict=True))
    patches = _patches(batch, dtype, layout, device)
    shape = (batch, 3, size, size)

    def loop() -> Tensor:
        images = torch.zeros(shape, dtype=dtype, device=device)
        for patch, (n, (r, c)) in zip(patches, where, strict=True):
            images[n, :, r : r + PATCH_SIZE, c : c + PATCH_SIZE] += patch
        return images

    return {
        OURS: lambda: ops.scatter_patches(patches, corners, shape, index),
        "reference": lambda: reference.scatter_patches(patches, index, corners, shape),
        "loop": loop,
    }


def _onto(
    batch: int, size: int, dtype: torch.dtype, layout: str, device: torch.device
) -> Contenders:
    index, corners = places(batch, size, device)
    where = list(zip(index.tolist(), corners.tolist(), strict=True))
    patches = _patches(batch, dtype, layout, device)
    base = torch.randn(batch, 3, size, size, device=device).to(dtype)
    base = base.contiguous(memory_format=LAYOUTS[layout])

    def loop() -> Tensor:
        images = base.clone()
        for patch, (n, (r, c)) in zip(patches, where, strict=True):
            images[n, :, r : r + PATCH_SIZE, c : c + PATCH_SIZE] = patch
        return images

    return {
        OURS: lambda: ops.scatter_patches_onto(base, patches, corners, index),
        "reference": lambda: reference.scatter_patches_onto(base, patches, index, corners),
        "loop": loop,
    }


BUILD = {"scatter_patches": _sum, "scatter_patches_onto": _onto}

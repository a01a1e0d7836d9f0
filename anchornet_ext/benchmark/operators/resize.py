"""Cases of `resize_images`: whole images to the side of a patch, as for the glance."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from anchornet_ext import ops, reference

from ..harness import Case, Contenders, Options, Work
from .case import operator_case
from .setting import (
    FLOATS,
    LAYOUTS,
    MEAN,
    OURS,
    PATCH_SIZE,
    STD,
    batches_and_caches,
    name_of,
    sizes,
    wanted,
)


def cases(options: Options) -> Iterator[Case]:
    for size in sizes(options):
        for batch, cold in batches_and_caches(options, (1, 8, 32)):
            for dtype in (*FLOATS, torch.uint8):
                if not wanted(options, dtype):
                    continue
                to = torch.float32 if dtype == torch.uint8 else dtype
                for layout in LAYOUTS:
                    yield operator_case(
                        "resize_images",
                        {
                            "size": size,
                            "dtype": name_of(dtype),
                            "layout": layout,
                            "to dtype": f"to {name_of(to)}",
                        },
                        partial(_build, batch, size, dtype, layout, options.device),
                        batch=batch,
                        cold=cold,
                        work=Work(
                            read=batch * 3 * size**2 * dtype.itemsize,
                            written=batch * 3 * PATCH_SIZE**2 * to.itemsize,
                        ),
                        over=("interpolate",),
                    )


def _build(
    batch: int, size: int, dtype: torch.dtype, layout: str, device: torch.device
) -> Contenders:
    images = torch.rand(batch, 3, size, size, device=device).mul(255).to(dtype)
    images = images.contiguous(memory_format=LAYOUTS[layout])
    side = (PATCH_SIZE, PATCH_SIZE)
    mean, std = (
        (torch.tensor(MEAN, device=device), torch.tensor(STD, device=device))
        if dtype == torch.uint8
        else (None, None)
    )

    def interpolate() -> Tensor:
        floats = images
        if mean is not None and std is not None:
            floats = images.float().div_(255).sub_(mean[:, None, None]).div_(std[:, None, None])
        return torch.nn.functional.interpolate(
            floats, size=side, mode="bicubic", align_corners=True
        )

    return {
        OURS: lambda: ops.resize_images(images, PATCH_SIZE, mean=mean, std=std),
        "reference": lambda: reference.resize_images(images, side, mean, std),
        "interpolate": interpolate,
    }

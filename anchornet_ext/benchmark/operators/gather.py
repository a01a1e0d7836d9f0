"""Cases of `gather_patches`."""

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
    MEAN,
    NUM_PATCHES,
    OURS,
    PATCH_SIZE,
    STD,
    batches_and_caches,
    name_of,
    places,
    sizes,
    wanted,
)

_SINGLE, _BYTE, _HALF, _BFLOAT = torch.float32, torch.uint8, torch.float16, torch.bfloat16
#: (dtype of the images, of the patches): another one means that they are normalised on the way.
KINDS = (
    (_SINGLE, _SINGLE),
    (_BYTE, _BYTE),
    (_BYTE, _SINGLE),
    (_HALF, _HALF),
    (_BFLOAT, _BFLOAT),
    (_BYTE, _BFLOAT),
)


def cases(options: Options) -> Iterator[Case]:
    for size in sizes(options):
        for batch, cold in batches_and_caches(options, (1, 8, 32)):
            for source, to in KINDS:
                if not wanted(options, source):
                    continue
                for layout in LAYOUTS:
                    for result in LAYOUTS:
                        if (_HALF in (source, to) or _BFLOAT in (source, to)) and layout != result:
                            continue  # nothing that the wider types do not show already
                        numel = batch * NUM_PATCHES * 3 * PATCH_SIZE**2
                        yield operator_case(
                            "gather_patches",
                            {
                                "size": size,
                                "dtype": name_of(source),
                                "layout": layout,
                                "to dtype": f"to {name_of(to)}",
                                "to layout": result,
                            },
                            partial(
                                _build, batch, size, source, to, layout, result, options.device
                            ),
                            batch=batch,
                            cold=cold,
                            work=Work(read=numel * source.itemsize, written=numel * to.itemsize),
                            over=("loop", "indexing"),
                        )


def _build(
    batch: int,
    size: int,
    source: torch.dtype,
    to: torch.dtype,
    layout: str,
    result: str,
    device: torch.device,
) -> Contenders:
    index, corners = places(batch, size, device)
    rows, columns = corners.unbind(1)
    where = list(zip(index.tolist(), corners.tolist(), strict=True))
    images = torch.rand(batch, 3, size, size, device=device).mul(255).to(source)
    images = images.contiguous(memory_format=LAYOUTS[layout])
    out = LAYOUTS[result]
    mean, std = (
        (torch.tensor(MEAN, device=device), torch.tensor(STD, device=device))
        if source != to
        else (None, None)
    )

    def finish(crops: Tensor) -> Tensor:
        if mean is not None and std is not None:
            crops = crops.float().div_(255).sub_(mean[:, None, None]).div_(std[:, None, None])
        return crops.to(to).contiguous(memory_format=out)

    def ours() -> Tensor:
        return ops.gather_patches(
            images, corners, PATCH_SIZE, index, mean=mean, std=std, dtype=to, memory_format=out
        )

    def specification() -> Tensor:
        side = (PATCH_SIZE, PATCH_SIZE)
        crops = reference.gather_patches(images, index, corners, side, mean, std, to)
        return crops.contiguous(memory_format=out)

    def loop() -> Tensor:
        """What is usually written."""
        return finish(
            torch.stack(
                [images[n, :, r : r + PATCH_SIZE, c : c + PATCH_SIZE] for n, (r, c) in where]
            )
        )

    def indexing() -> Tensor:
        windows = images.unfold(2, PATCH_SIZE, 1).unfold(3, PATCH_SIZE, 1)  # (N, C, H', W', h, w)
        return finish(windows[index, :, rows, columns])

    return {OURS: ours, "reference": specification, "loop": loop, "indexing": indexing}

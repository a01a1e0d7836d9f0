"""Cases of `select_patches`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torchvision
from torch import Tensor

from anchornet_ext import ops, reference

from ..harness import Case, Contenders, Options, Work
from .case import operator_case
from .setting import (
    IOU_THRESHOLD,
    NUM_PATCHES,
    OURS,
    PATCH_SIZE,
    STRIDE,
    batches_and_caches,
    grid_side,
    sizes,
    wanted,
)


def batched_nms(cam: Tensor, boxes: Tensor) -> list[Tensor]:
    """torchvision's NMS over all locations of all images, then the first patches of every image.

    It suppresses what overlaps by more than the threshold, where section 3.3 suppresses by as much
    or more, and it cannot fill up, so results may differ; the work is the same.
    """
    batch, cells = len(cam), boxes.shape[0]
    image = torch.arange(batch, device=cam.device).repeat_interleave(cells)
    kept = torchvision.ops.batched_nms(
        boxes.repeat(batch, 1), cam.reshape(-1), image, IOU_THRESHOLD
    )
    by_image = kept[torch.argsort(image[kept], stable=True)]
    counts = torch.bincount(image[by_image], minlength=batch).tolist()
    return [part[:NUM_PATCHES] - b * cells for b, part in enumerate(by_image.split(counts))]


def cases(options: Options) -> Iterator[Case]:
    if not wanted(options, torch.float32):
        return
    for size in sizes(options):
        for batch, cold in batches_and_caches(options, (1, 32, 256)):
            yield operator_case(
                "select_patches",
                {"size": size, "dtype": "float32"},
                partial(_build, batch, size, options.device),
                batch=batch,
                cold=cold,
                work=Work(read=batch * grid_side(size) ** 2 * 4),
                over=("batched_nms",),
            )


def _build(batch: int, size: int, device: torch.device) -> Contenders:
    side = grid_side(size)
    cam = torch.randn(batch, side, side, device=device)
    corner = torch.arange(side, device=device) * STRIDE
    y, x = torch.meshgrid(corner, corner, indexing="ij")
    boxes = torch.stack((x, y, x + PATCH_SIZE, y + PATCH_SIZE), dim=-1).reshape(-1, 4).float()
    arguments = (cam, NUM_PATCHES, PATCH_SIZE, STRIDE, IOU_THRESHOLD)
    return {
        OURS: lambda: ops.select_patches(*arguments),
        "reference": lambda: reference.select_patches(*arguments),
        "batched_nms": lambda: batched_nms(cam, boxes),
    }

"""Specification of `anchornet_ext.ops.select_patches`: greedy IoU suppression on a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def _overlap(delta: int, patch_size: int) -> int:
    return max(0, patch_size - abs(delta))


def iou(a: tuple[int, int], b: tuple[int, int], patch_size: int, stride: int) -> float:
    """|A and B| / |A or B| in pixels of the patches at grid cells `a` and `b`."""
    intersection = _overlap((a[0] - b[0]) * stride, patch_size) * _overlap(
        (a[1] - b[1]) * stride, patch_size
    )
    return intersection / (2 * patch_size * patch_size - intersection)


def _visiting_order(row: list[float]) -> list[int]:
    """Descending activation, equal ones by the lower index, NaN last."""
    return sorted(
        range(len(row)),
        key=lambda i: (math.isnan(row[i]), 0.0 if math.isnan(row[i]) else -row[i], i),
    )


def select_patches(
    cam: Tensor,
    num_patches: int,
    patch_size: int,
    stride: int,
    iou_threshold: float | Sequence[float],
) -> tuple[Tensor, Tensor, Tensor]:
    """Greedy selection, one rank after another.

    The patch of rank j is the first location in visiting order, not taken yet, whose IoU with every
    patch taken so far is below iou_threshold[j]. Where there is none, it is the location with the
    smallest maximum IoU with the patches taken so far (equal ones in visiting order), and it does
    not count as qualified.

    Returns index (B, k) int64 into the flattened grid, top_left (B, k, 2) int64 as (row, column) in
    pixels, num_qualified (B) int64.
    """
    batch, height, width = cam.shape
    if isinstance(iou_threshold, Sequence):
        thresholds = list(iou_threshold)
    else:
        thresholds = [iou_threshold] * num_patches
    index = torch.empty(batch, num_patches, dtype=torch.int64)
    num_qualified = torch.empty(batch, dtype=torch.int64)
    for b, row in enumerate(cam.detach().double().cpu().reshape(batch, height * width).tolist()):
        order = _visiting_order(row)
        largest_iou = [0.0] * (height * width)
        taken: list[int] = []
        qualified = 0
        for threshold in thresholds:
            free = [i for i in order if i not in taken]
            # With nothing taken there is nothing to overlap with: the first always qualifies.
            chosen = next((i for i in free if not taken or largest_iou[i] < threshold), None)
            if chosen is None:
                chosen = min(free, key=lambda i: largest_iou[i])  # min keeps the first of equals
            else:
                qualified += 1
            taken.append(chosen)
            for i in range(height * width):
                overlap = iou(divmod(chosen, width), divmod(i, width), patch_size, stride)
                largest_iou[i] = max(largest_iou[i], overlap)
        index[b] = torch.tensor(taken)
        num_qualified[b] = qualified
    index = index.to(cam.device)
    top_left = torch.stack((index // width, index % width), dim=-1) * stride
    return index, top_left, num_qualified.to(cam.device)

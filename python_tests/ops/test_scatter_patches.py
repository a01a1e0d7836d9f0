"""scatter_patches and scatter_patches_onto against their specification, bit for bit."""

from __future__ import annotations

import torch

from anchornet_ext import ops


def test_overlap_by_hand() -> None:
    patches = torch.tensor([[[[1.0, 2]]], [[[10.0, 20]]]])
    corners = torch.tensor([[0, 0], [0, 1]])
    image = torch.zeros(2, dtype=torch.int64)
    summed = ops.scatter_patches(patches, corners, (1, 1, 1, 4), image)
    assert summed.tolist() == [[[[1, 12, 20, 0]]]]
    base = torch.full((1, 1, 1, 4), 7.0)
    written = ops.scatter_patches_onto(base, patches, corners, image)
    assert written.tolist() == [[[[1, 10, 20, 7]]]]

"""gather_patches against its specification, bit for bit."""

from __future__ import annotations

import pytest
import torch

from anchornet_ext import ops, reference

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def test_one_patch_by_hand() -> None:
    images = torch.arange(24, dtype=torch.float32).reshape(1, 1, 4, 6)
    patches = ops.gather_patches(images, torch.tensor([[1, 2]]), (2, 3))
    assert patches.tolist() == [[[[8, 9, 10], [14, 15, 16]]]]


def test_every_byte_is_normalised_like_the_reference() -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    mean, std = torch.tensor([0.485]), torch.tensor([0.229])
    where = torch.zeros(1, 2, dtype=torch.int64)
    for dtype in FLOATS:
        patches = ops.gather_patches(images, where, 16, mean=mean, std=std, dtype=dtype)
        expected = reference.gather_patches(
            images, torch.zeros(1, dtype=torch.int64), where, (16, 16), mean, std, dtype
        )
        assert torch.equal(patches, expected)


def test_names_the_patch_outside() -> None:
    images = torch.zeros(1, 3, 8, 9)
    with pytest.raises(ValueError, match=r"patch 1 at \(row, column\) = \(3, 7\)"):
        ops.gather_patches(images, torch.tensor([[[0, 0], [3, 7]]]), 3)

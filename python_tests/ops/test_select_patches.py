"""select_patches against its specification, bit for bit, on each device."""

from __future__ import annotations

import pytest
import torch

from anchornet_ext import ops, reference

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.cuda,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
        ],
    ),
]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def check(cam, *arguments):
    result = ops.select_patches(cam, *arguments)
    expected = reference.select_patches(cam, *arguments)
    for name, got, want in zip(result._fields, result, expected, strict=True):
        assert got.dtype == torch.int64
        assert torch.equal(got, want), f"{name}: {got.tolist()} instead of {want.tolist()}"
    return result


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 1.0])
def test_the_papers_grid(dtype, threshold, device):
    generator = torch.Generator().manual_seed(0)
    cam = torch.randn(5, 17, 17, generator=generator).to(dtype).to(device)
    check(cam, 4, 95, 8, threshold)

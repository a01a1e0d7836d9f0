"""class_activation_map against its specification, on each device and memory layout."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

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
# Both sides accumulate the same exact products in float32 (float64), in another order.
TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-4},
    torch.float64: {"rtol": 1e-12, "atol": 1e-11},
}

# How (B, C, h, w) values may lie in memory. Slices are cut from a larger tensor of NaN, so that
# reading outside them shows.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": lambda x: _inside(x),
    "sliced_channels_last": lambda x: _inside(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "batch_inside": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
}


def _inside(x: Tensor) -> Tensor:
    """`x` as the middle of a larger tensor that is NaN around it."""
    larger = torch.full([size + 2 for size in x.shape], torch.nan, dtype=x.dtype, device=x.device)
    view = larger[tuple(slice(1, size + 1) for size in x.shape)]
    view.copy_(x)
    return view


def make(shape, num_classes, dtype, weight_dtype, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(shape, generator=generator).to(dtype).to(device)
    weight = torch.randn(num_classes, shape[1], generator=generator).to(weight_dtype).to(device)
    class_index = torch.randint(num_classes, (shape[0],), generator=generator).to(device)
    return features, weight, class_index


def check(features: Tensor, weight: Tensor, class_index: Tensor) -> None:
    result = ops.class_activation_map(features, weight, class_index)
    expected = reference.class_activation_map(features, weight, class_index)
    assert result.is_contiguous()
    torch.testing.assert_close(result, expected, **TOLERANCE[expected.dtype])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(3, 96, 17, 17), (1, 512, 17, 17), (2, 37, 5, 7), (5, 8, 1, 1), (1, 1030, 3, 45)]
)
def test_equals_reference(shape, dtype, layout, device):
    features, weight, class_index = make(shape, 10, dtype, torch.float32, device)
    check(LAYOUTS[layout](features), weight, class_index)

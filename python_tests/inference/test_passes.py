"""Passes over batches that are computed in pieces."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from anchornet_ext.inference import passes
from anchornet_ext.models.backbones import build_backbone
from anchornet_ext.models.native_calls import has_fast_kernels
from anchornet_ext.models.tuning import tune


class Sums(nn.Module):
    """(B, 3, H, W) -> (B, 1) and what batches it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        return images.sum((1, 2, 3))[:, None]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 300))
def test_pieces_are_whole_in_order_and_small(batch: int) -> None:
    network = Sums()
    images = torch.arange(3.0 * batch).view(batch, 3, 1, 1)
    assert torch.equal(passes._in_pieces(network)(images), Sums()(images))
    assert sum(network.batches) == batch
    assert max(network.batches) <= passes.MOST_AT_ONCE
    assert max(network.batches) - min(network.batches) <= 1
    assert len(network.batches) == max(1, -(-batch // passes.MOST_AT_ONCE))


@pytest.mark.skipif(not has_fast_kernels(), reason="for AVX-512 and the native library")
def test_a_network_gets_few_images_at_once_where_that_is_best() -> None:
    torch.manual_seed(0)
    images = torch.randn(19, 3, 64, 64)
    bfloat = torch.bfloat16 if has_fast_kernels(torch.bfloat16) else None
    for name, dtype, pieces in (
        ("densenet121", None, [7, 6, 6]),
        ("resnet18", None, [19]),
        ("resnet18", bfloat, [19] if bfloat is None else [7, 6, 6]),
        ("mobilenet_v3_small", bfloat, [19]),
    ):
        network = build_backbone(name, 5).eval().requires_grad_(False)
        tuned = tune(network, dtype=dtype)
        batches: list[int] = []
        tuned.register_forward_pre_hook(lambda _, given, seen=batches: seen.append(len(given[0])))
        found = passes._in_pieces(tuned)(images)
        bound = 1e-3 if dtype is None else 5e-2
        torch.testing.assert_close(found.float(), network(images), rtol=bound, atol=bound)
        assert batches == pieces
    assert tune(network, dtype=torch.float64).best_batch is None

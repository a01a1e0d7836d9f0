"""Passes over batches that are computed in pieces."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from anchornet_ext.inference import passes


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

"""Forward-mode gradients of the folded AnchorNet, whose operators have none."""

from __future__ import annotations

import torch

from anchornet_ext.models import AnchorNet


def test_the_folded_network_has_one_all_the_same() -> None:
    """It runs as PyTorch's own layers then, up to the map of one class."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        folded = AnchorNet(3).fold().requires_grad_(False)
    x = torch.randn(1, 3, 95, 95)
    _, tangent = torch.func.jvp(folded, (x,), (torch.ones_like(x),))
    assert tangent.abs().max() > 0

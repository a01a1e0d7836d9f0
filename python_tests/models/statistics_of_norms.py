"""Networks whose batch norms have statistics as of a trained one."""

from __future__ import annotations

import torch
from torch import nn

from anchornet_ext.models import build_backbone


def build(name: str, classes: int) -> nn.Module:
    """In evaluation mode, without gradients; the same at every call."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_backbone(name, classes).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.bias.data.normal_(std=0.3, generator=generator)
    return network.requires_grad_(False)

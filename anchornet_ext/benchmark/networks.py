"""The networks that are measured."""

from __future__ import annotations

import torch
from torch import nn

from anchornet_ext.models import AnchorNet


def realistic_anchor(device: torch.device, num_classes: int = 1000) -> AnchorNet:
    """AnchorNet in evaluation mode with statistics of batch norm as after training.

    With those of a new network folding would multiply by one.
    """
    anchor = AnchorNet(num_classes).to(device).eval()
    for module in anchor.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 2)
            module.running_mean.uniform_(-0.5, 0.5)
    return anchor

"""The networks that are measured."""

from __future__ import annotations

import torch
from torch import nn

from anchornet_ext.inference import TwoStageClassifier
from anchornet_ext.models import AnchorNet, build_backbone


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


@torch.no_grad()
def with_statistics(network: nn.Module, size: int) -> nn.Module:
    """The network in evaluation mode, its batch norms with the statistics of noise of that size.

    With those of a new network, activations grow or vanish from layer to layer, and numbers that
    are too small for their type are slow on many processors.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    network.train()(torch.randn(4, 3, size, size))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()


def random_classifier(backbone: str, num_classes: int = 1000) -> TwoStageClassifier:
    """A two-stage classifier of random weights, on the CPU: time does not depend on training."""
    torch.manual_seed(0)
    networks = [with_statistics(build_backbone(backbone, num_classes), 95) for _ in range(2)]
    anchor = realistic_anchor(torch.device("cpu"), num_classes)
    return TwoStageClassifier(anchor, *networks, glance_name=backbone, focus_name=backbone).eval()

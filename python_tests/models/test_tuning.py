"""A tuned network says the same as the network, and leaves it alone."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import noise
from torch import Tensor, nn

from anchornet_ext.models import build_backbone
from anchornet_ext.models.tuning import tune


def with_statistics(network: nn.Module, seed: int = 0) -> nn.Module:
    """As a trained network has them: a fresh one's batch norms do next to nothing."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5, generator=generator)
                module.bias.data.normal_(generator=generator)
    return network.eval()


def backbone(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return with_statistics(build_backbone(name, 10))


def outputs(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = network(images)
    return out


def assert_close(got: Tensor, expected: Tensor, bound: float = 1e-4) -> None:
    """Relative to the largest logit: single ones may be close to zero by chance."""
    assert got.shape == expected.shape
    error = (got.double() - expected.double()).abs().max() / expected.double().abs().max()
    assert error <= bound


@pytest.mark.parametrize(
    ("name", "folded", "kept"),
    [
        ("resnet18", 20, 0),
        ("resnet50", 53, 0),
        ("densenet121", 59, 62),  # those before a layer read a concatenation
        ("mobilenet_v3_small", 34, 0),
        ("regnet_y_400mf", 53, 0),
        ("efficientnet_b0", 49, 0),
        ("timm/mobilenetv3_small_100", 34, 0),  # norm and activation in one module
        ("timm/tf_efficientnet_b0", 49, 0),  # a convolution with its own padding
        ("timm/resnetv2_50", 32, 17),  # its weights are standardised only in another variant
    ],
)
def test_same_logits(name: str, folded: int, kept: int) -> None:
    network = backbone(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    tuned = tune(network)
    assert (tuned.norms.folded, len(tuned.norms.kept)) == (folded, kept)
    assert tuned.norms.obstacle is None
    left = [m for m in tuned.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(left) == kept
    images = noise(2, (95, 95), seed=1)
    expected = outputs(network, images)
    assert_close(outputs(tuned, images), expected)
    assert_close(outputs(tune(network, dtype=torch.float64), images), expected)

    # The network is as it was, and shares nothing with the copy.
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    theirs = {p.data_ptr() for p in network.parameters()}
    assert not theirs & {p.data_ptr() for p in tuned.parameters()}
    assert all(p.requires_grad for p in network.parameters())

"""Backbones by name."""

from __future__ import annotations

import pytest
import torch

from anchornet_ext.models.backbones import build_backbone, require_input_size


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_takes_patches_and_gives_logits(name):
    model = build_backbone(name, 7).eval()
    require_input_size(model, 95)
    with torch.no_grad():
        assert model(torch.zeros(2, 3, 95, 95)).shape == (2, 7)


def test_an_unknown_name_gives_the_closest_ones():
    with pytest.raises(ValueError, match=r"no classification model named 'resnet51'.*resnet50"):
        build_backbone("resnet51", 10)

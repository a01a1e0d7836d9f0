"""Costs against the published figures."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer, get_model

from anchornet_ext.models import AnchorNet, count_macs


@pytest.mark.parametrize(
    ("name", "size", "macs"),
    [
        ("resnet50", 224, 4_089_184_256),  # published 4.09 G
        ("resnet50", 95, 752_746_496),  # published 0.752 G (cut off, not rounded)
        ("densenet201", 224, 4_291_365_888),  # published 4.29 G
        ("densenet201", 95, 789_777_408),  # published 0.790 G
    ],
)
def test_published_backbones(name, size, macs):
    with torch.device("meta"):
        model = get_model(name)
    assert count_macs(model, (3, size, size)) == macs


def test_published_anchornet_and_its_folded_form():
    model = AnchorNet(1000)
    macs = count_macs(model, (3, 224, 224))
    assert round(macs / 1e6, 2) == 60.54
    expansion_on_the_map, expansion_and_classifier = 17 * 17 * 96 * 512, 512 * 1000
    folded = macs - expansion_on_the_map - expansion_and_classifier + 96 * 1000
    assert count_macs(model.fold(), (3, 224, 224)) == folded == 45_917_616


def test_grouped_dilated_and_linear_layers_by_hand():
    model = nn.Sequential(
        nn.Conv2d(4, 8, (3, 2), stride=2, dilation=2, groups=2),
        nn.BatchNorm2d(8),
        nn.Flatten(),
        nn.LazyLinear(5),
    )
    model(torch.zeros(1, 4, 11, 9))
    # rows: (11 - 5) // 2 + 1 = 4; columns: (9 - 3) // 2 + 1 = 4
    assert count_macs(model, (4, 11, 9)) == 4 * 4 * 8 * 2 * 3 * 2 + 8 * 16 * 5


def test_attention_counts_both_of_its_products():
    tokens, width, hidden = 16 + 1, 24, 96
    small = VisionTransformer(
        image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=width, mlp_dim=hidden,
        num_classes=10,
    )  # fmt: skip
    expected = (
        16 * width * 3 * 64  # patches to tokens
        + tokens * width * width * 4  # query, key, value, output
        + 2 * tokens * tokens * width  # scores and weighted values
        + 2 * tokens * width * hidden
        + width * 10
    )
    assert count_macs(small, (3, 32, 32)) == expected


def test_the_module_is_left_as_it_was():
    calls = []
    model = AnchorNet(5, dropout=0.5).double()
    model.blocks[0].eval()
    model.stem.register_forward_hook(lambda *_: calls.append("stem"))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    count_macs(model, (3, 95, 95))
    with pytest.raises(ValueError):
        count_macs(model, (3, 50, 50))
    assert calls == []
    assert [module.training for module in model.modules()] == modes
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) == 1
    for key, value in model.state_dict().items():
        assert value.device.type == "cpu"
        assert torch.equal(value, before[key])
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("size", [(224, 224), (3, 0, 224), (3, 224, 224.5), (1, 3, 224, 224)])
def test_wrong_sizes_are_refused(size):
    with pytest.raises(ValueError, match="input_size"):
        count_macs(AnchorNet(5), size)


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match="function"):
        count_macs(lambda x: x, (3, 95, 95))

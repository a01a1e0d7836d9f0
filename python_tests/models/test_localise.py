"""Localisation against Eq. 2 written out and the specification of the selection."""

from __future__ import annotations

import pytest
import torch
from devices import on_devices

from anchornet_ext import reference
from anchornet_ext.models import AnchorNet, localise


@pytest.fixture(params=["plain", "folded"])
def anchor(request):
    """AnchorNet in both forms, with the plain one kept for the expected values."""
    torch.manual_seed(3)
    plain = AnchorNet(6).double().eval()
    torch.nn.init.normal_(plain.expansion.bias)
    return plain, (plain if request.param == "plain" else plain.fold())


@on_devices
@torch.no_grad()
def test_map_is_equation_2_up_to_a_constant_and_patches_are_those_of_the_specification(
    anchor, device
):
    plain, used = (module.to(device) for module in anchor)
    images = torch.randn(3, 3, 160, 143, dtype=torch.float64, device=device)
    found = localise(used, images)
    torch.testing.assert_close(found.logits, plain(images))
    assert torch.equal(found.class_index, plain(images).argmax(dim=1))
    expanded = plain.expansion(plain.features(images))  # (B, 512, h, w)
    equation_2 = reference.class_activation_map(
        expanded, plain.classifier.weight, found.class_index
    )
    constant = equation_2 - found.activation_map
    expected = (plain.classifier.weight @ plain.expansion.bias)[found.class_index]
    torch.testing.assert_close(constant, expected[:, None, None].expand_as(constant))
    index, top_left, num_qualified = reference.select_patches(found.activation_map, 4, 95, 8, 0.3)
    assert torch.equal(found.selection.index, index)
    assert torch.equal(found.selection.top_left, top_left)
    assert torch.equal(found.selection.num_qualified, num_qualified)
    assert (found.selection.top_left + 95 <= torch.tensor((160, 143), device=device)).all()


@torch.no_grad()
def test_a_given_class_is_the_one_localised(anchor):
    _, used = anchor
    images = torch.randn(2, 3, 120, 120, dtype=torch.float64)
    own = localise(used, images, class_index=torch.tensor([4, 1]))
    assert own.class_index.tolist() == [4, 1]
    for row, value in enumerate((4, 1)):
        same = localise(used, images, class_index=value)
        assert same.class_index.tolist() == [value, value]
        torch.testing.assert_close(same.activation_map[row], own.activation_map[row])
    assert not torch.allclose(own.activation_map[0], same.activation_map[0])


@torch.no_grad()
def test_half_precision_and_empty_batches():
    model = AnchorNet(6).to(torch.bfloat16).eval().fold()
    found = localise(model, torch.randn(2, 3, 120, 120, dtype=torch.bfloat16), num_patches=2)
    assert found.activation_map.dtype == torch.float32
    assert found.selection.top_left.shape == (2, 2, 2)
    empty = localise(AnchorNet(6).eval(), torch.zeros(0, 3, 120, 120))
    assert empty.selection.top_left.shape == (0, 4, 2)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"class_index": 6}, ValueError, r"\[0, 6\), got 6"),
        ({"class_index": -1}, ValueError, r"got -1"),
        ({"class_index": torch.tensor([0, 9])}, ValueError, r"got 9"),
        ({"class_index": torch.tensor([0])}, ValueError, r"\(2,\).*\(1,\)"),
        ({"class_index": torch.tensor([0, 1], dtype=torch.int32)}, TypeError, "int32"),
        ({"class_index": 1.0}, TypeError, "1.0"),
        ({"num_patches": 17}, ValueError, "17"),
        ({"num_patches": 0}, ValueError, "num_patches"),
        ({"iou_threshold": 1.5}, ValueError, "1.5"),
    ],
)
def test_wrong_arguments_are_refused(options, error, match):
    with pytest.raises(error, match=match):
        localise(AnchorNet(6).eval(), torch.zeros(2, 3, 120, 120), **options)


def test_small_images_are_refused():
    with pytest.raises(ValueError, match="94x120"):
        localise(AnchorNet(6).eval(), torch.zeros(2, 3, 94, 120))

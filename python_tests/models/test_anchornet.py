"""AnchorNet: Table 1, input checks, and folding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from anchornet_ext.models.anchornet import AnchorNet, FoldedAnchorNet, MBConv


def randomise_norms(model: nn.Module, generator: torch.Generator) -> None:
    """Statistics and affine parameters as after training: nothing left at 0 or 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -1, 1),
                (module.running_var, 0.2, 3),
                (module.weight.data, -1.5, 1.5),
                (module.bias.data, -1, 1),
            ):
                tensor.uniform_(low, high, generator=generator)


def test_map_sizes_are_those_of_table_1():
    model = AnchorNet(10).eval()
    sizes = []
    for module in (model.stem, *model.blocks):
        module.register_forward_hook(lambda _m, _i, out: sizes.append(tuple(out.shape[2:])))
    logits = model(torch.zeros(2, 3, 224, 224))
    assert sizes == [(n, n) for n in (111, 55, 27, 25, 23, 21, 19, 17)]
    assert logits.shape == (2, 10)


def test_parameter_count_is_the_released_one_without_its_unused_layer():
    # 674,984 released, of which block 0's expansion (16 x 16) and its batch norm (2 x 16) are
    # never used.
    count = sum(parameter.numel() for parameter in AnchorNet(1000).parameters())
    assert count == 674_984 - 16 * 16 - 2 * 16


def test_skips_only_where_stride_and_width_stay():
    blocks = [block for block in AnchorNet(10).blocks if isinstance(block, MBConv)]
    assert [block.has_skip for block in blocks] == [False, False, True, False, False, True, True]


@pytest.mark.parametrize("skip", ["centre", "top_left"])
def test_skip_adds_the_cropped_input(skip):
    block = MBConv(24, 24, expansion=4, stride=1, skip=skip).eval()
    nn.init.zeros_(block.project.norm.weight)  # silence the residual branch
    x = torch.randn(1, 24, 7, 6)
    expected = x[:, :, 1:-1, 1:-1] if skip == "centre" else x[:, :, :-2, :-2]
    torch.testing.assert_close(block(x), expected, rtol=0, atol=0)


@given(
    seed=st.integers(0, 2**31),
    batch=st.integers(0, 3),
    height=st.integers(95, 112),
    width=st.integers(95, 112),
    skip=st.sampled_from(["centre", "top_left"]),
    in_channels=st.sampled_from([1, 3]),
)
@settings(max_examples=8, deadline=None)
def test_folding_changes_nothing(seed, batch, height, width, skip, in_channels):
    generator = torch.Generator().manual_seed(seed)
    model = AnchorNet(7, skip=skip, in_channels=in_channels, dropout=0.5).double()
    randomise_norms(model, generator)
    model.eval()
    folded = model.fold()
    images = torch.randn(
        batch, in_channels, height, width, generator=generator, dtype=torch.float64
    )
    with torch.no_grad():
        torch.testing.assert_close(folded(images), model(images), rtol=1e-9, atol=1e-9)
        features = model.features(images)
        torch.testing.assert_close(folded.features(images), features, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(folded.class_weight, model.class_weight, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(folded.class_bias, model.class_bias, rtol=1e-12, atol=1e-12)
    linear = features.mean(dim=(2, 3)) @ model.class_weight.T + model.class_bias
    torch.testing.assert_close(linear, model(images), rtol=1e-9, atol=1e-9)


def test_folding_in_single_precision_stays_within_rounding():
    generator = torch.Generator().manual_seed(0)
    model = AnchorNet(100)
    randomise_norms(model, generator)
    model.eval()
    images = torch.randn(2, 3, 224, 224, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(model.fold()(images), model(images), rtol=1e-4, atol=1e-4)


def test_folded_has_its_own_parameters_in_channels_last_and_evaluation_mode():
    model = AnchorNet(5)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = model.fold()
    assert model.training
    assert not folded.training
    assert folded.stem.conv.weight.is_contiguous(memory_format=torch.channels_last)
    for parameter in folded.parameters():
        parameter.data.fill_(9)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_folded_round_trips_through_its_state_dict():
    folded = AnchorNet(5, skip="top_left").fold()
    other = FoldedAnchorNet(5, skip="top_left")
    other.load_state_dict(folded.state_dict())
    images = torch.randn(1, 3, 95, 103)
    with torch.no_grad():
        torch.testing.assert_close(other.eval()(images), folded(images))


@pytest.mark.parametrize("build", [AnchorNet, FoldedAnchorNet])
@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ((1, 3, 94, 224), "94x224"),
        ((1, 3, 224, 94), "224x94"),
        ((1, 4, 224, 224), "3 channels, got 4"),
        ((3, 224, 224), r"\(3, 224, 224\)"),
    ],
)
def test_wrong_images_are_refused(build, shape, match):
    with pytest.raises(ValueError, match=match):
        build(5)(torch.zeros(shape))


def test_integer_images_are_refused():
    with pytest.raises(TypeError, match="uint8"):
        AnchorNet(5)(torch.zeros(1, 3, 95, 95, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_classes": 0}, "num_classes"),
        ({"in_channels": 0}, "in_channels"),
        ({"skip": "middle"}, "middle"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_wrong_settings_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        AnchorNet(**options)


def test_every_parameter_gets_a_gradient():
    model = AnchorNet(5, dropout=0.2)
    model(torch.randn(2, 3, 103, 95)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name


def test_folded_is_one_graph_for_torch_compile():
    folded = AnchorNet(5).fold()
    compiled = torch.compile(folded, fullgraph=True, backend="eager")
    images = torch.randn(2, 3, 104, 95)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), folded(images))


def test_folding_keeps_the_dtype():
    folded = AnchorNet(5).bfloat16().fold()
    assert {parameter.dtype for parameter in folded.parameters()} == {torch.bfloat16}

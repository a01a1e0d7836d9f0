"""Receptive fields: Eq. 1, grids, boxes, and the analysis of networks against gradients."""

from __future__ import annotations

import pytest
import torch
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from anchornet_ext.models.anchornet import BLOCKS, AnchorNet, SqueezeExcitation
from anchornet_ext.receptive_field import (
    ReceptiveField,
    accumulate,
    boxes,
    grid_size,
    probe,
    receptive_field,
)


def test_accumulate_gives_table_1():
    layers = accumulate([3] * 8, [2, *(block.stride for block in BLOCKS)])
    assert [layer.size for layer in layers] == [3, 7, 15, 31, 47, 63, 79, 95]
    assert layers[-1].stride == 8


@pytest.mark.parametrize(
    ("kernels", "strides", "match"),
    [([3, 3], [1], "2 kernel sizes, but 1"), ([0], [1], "got 0, 1"), ([3], [0], "got 3, 0")],
)
def test_accumulate_refuses(kernels, strides, match):
    with pytest.raises(ValueError, match=match):
        accumulate(kernels, strides)


@given(
    image=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    kernel=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    stride=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
@settings(max_examples=50, deadline=None)
def test_grid_is_the_output_of_a_convolution_and_its_boxes_tile_the_image(image, kernel, stride):
    assume(kernel[0] <= image[0] and kernel[1] <= image[1])
    rows, columns = grid_size(image, kernel, stride)
    output = F.conv2d(torch.zeros(1, 1, *image), torch.zeros(1, 1, *kernel), stride=stride)
    assert (rows, columns) == output.shape[2:]
    locations = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).view(-1, 2)
    found = boxes(locations, kernel, stride)
    assert (found[:, :2] >= 0).all()
    assert (found[:, 2:] <= torch.tensor(image)).all()
    assert (found[:, 2:] - found[:, :2] == torch.tensor(kernel)).all()
    # One more row or column would hang over.
    assert rows * stride[0] + kernel[0] > image[0]
    assert columns * stride[1] + kernel[1] > image[1]


def test_boxes_are_half_open_and_rows_first():
    found = boxes(torch.tensor([[[0, 0], [1, 2]]]), 95, (8, 4), (0, 3))
    assert found.tolist() == [[[0, 3, 95, 98], [8, 11, 103, 106]]]
    field = ReceptiveField((95, 95), (8, 4), (0, 3))
    assert torch.equal(field.boxes(torch.tensor([[[0, 0], [1, 2]]])), found)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: grid_size(94, 95, 8), ValueError, r"\(95, 95\).*\(94, 94\)"),
        (lambda: grid_size((224, 90), 95, 8), ValueError, r"\(224, 90\)"),
        (lambda: grid_size(224, 95, 0), ValueError, "stride"),
        (lambda: grid_size(224, 0, 8), ValueError, "patch_size"),
        (lambda: boxes(torch.zeros(4, 3, dtype=torch.int64), 9, 1), ValueError, r"\(4, 3\)"),
        (lambda: boxes(torch.zeros(4, 2), 9, 1), TypeError, "float32"),
        (lambda: boxes(torch.zeros(4, 2, dtype=torch.int64), 9, 0), ValueError, "stride"),
        (lambda: receptive_field(nn.Identity(), (3, 4)), ValueError, "input_size"),
        (lambda: receptive_field(len, (3, 4, 4)), TypeError, "builtin"),
        (lambda: probe(nn.Identity(), torch.zeros(1, 1, 3, 3), (3, 0)), ValueError, r"\(3, 0\)"),
        (lambda: probe(nn.Flatten(), torch.zeros(1, 1, 3, 3), (0, 0)), ValueError, r"\(1, 9\)"),
    ],
)
def test_wrong_arguments_are_refused(call, error, match):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.parametrize("skip", ["centre", "top_left"])
@pytest.mark.parametrize("folded", [False, True])
def test_anchornet_sees_95_pixels_in_steps_of_8(skip, folded):
    model = AnchorNet(5, skip=skip)
    field = receptive_field(
        model.fold() if folded else model,
        (3, 224, 200),
        method="features",
        gates=[SqueezeExcitation],
    )
    assert field == ReceptiveField((model.patch_size,) * 2, (model.stride,) * 2, (0, 0))


def test_every_row_of_table_1():
    model = AnchorNet(5)
    fields = [
        receptive_field(
            nn.Sequential(model.stem, model.blocks[:n]), (3, 224, 224), gates=[SqueezeExcitation]
        )
        for n in range(8)
    ]
    assert [field.size[0] for field in fields] == [3, 7, 15, 31, 47, 63, 79, 95]
    assert [field.stride[0] for field in fields] == [2, 4, 8, 8, 8, 8, 8, 8]
    assert all(field.offset == (0, 0) for field in fields)


@pytest.mark.parametrize("skip", ["centre", "top_left"])
def test_gradients_of_anchornet_fill_the_box_exactly_with_the_gates_held_fixed(monkeypatch, skip):
    torch.manual_seed(0)
    model = AnchorNet(5, skip=skip).double().eval()
    images = torch.randn(1, 3, 119, 111, dtype=torch.float64)
    # Free gates: the whole image matters.
    assert probe(model.features, images, (1, 1)) == (0, 0, 119, 111)
    gates = SqueezeExcitation.gates
    monkeypatch.setattr(SqueezeExcitation, "gates", lambda self, x: gates(self, x).detach())
    for location in ((0, 0), (1, 2), (3, 2), (3, 0)):
        expected = boxes(torch.tensor(location), 95, 8).tolist()
        assert list(probe(model.features, images, location)) == expected


class Branches(nn.Module):
    """Crops, a residual branch, a concatenation, rectangular and dilated kernels, pools."""

    def __init__(self, kernel, dilation, stride, pool, crop) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, kernel, dilation=dilation)
        self.extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        self.norm = nn.BatchNorm2d(4)
        self.side = nn.Conv2d(2, 4, 1)
        self.crop = [c % e for c, e in zip(crop, self.extent, strict=True)]
        self.pool = nn.AvgPool2d(pool, stride)
        self.last = nn.Conv2d(6, 3, (1, 2), groups=3)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm(self.conv(x))
        rows, columns = out.shape[2:]
        top, left = self.crop
        x = x[..., top : top + rows, left:][..., :columns]
        out = out + self.side(x)  # not in place, and below: in place
        out += 1
        out = torch.cat((out, x), dim=1)
        return self.last(self.pool(out)).tanh_()


PAIRS = st.tuples(st.integers(1, 3), st.integers(1, 3))


@given(
    kernel=PAIRS,
    dilation=PAIRS,
    stride=PAIRS,
    pool=PAIRS,
    crop=st.tuples(st.integers(0, 6), st.integers(0, 6)),
    seed=st.integers(0, 999),
)
@settings(max_examples=30, deadline=None)
def test_analysis_equals_gradients(kernel, dilation, stride, pool, crop, seed):
    torch.manual_seed(seed)
    model = Branches(kernel, dilation, stride, pool, crop).double().eval()
    field = receptive_field(model, (2, 21, 24))
    images = torch.randn(1, 2, 21, 24, dtype=torch.float64)
    rows, columns = model(images).shape[2:]
    for location in ((0, 0), (rows - 1, columns - 1), (rows // 2, columns // 3)):
        expected = field.boxes(torch.tensor(location)).tolist()
        assert list(probe(model, images, location)) == expected


class Calls(nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


def write_into_part(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, :, 1:] += x[:, :, :-1]
    return y


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (nn.Conv2d(4, 4, 3, padding=1), r"'function' \(Conv2d\) has padding \(1, 1\)"),
        (nn.MaxPool2d(2, padding=1), "MaxPool2d.*padding"),
        (nn.MaxPool2d(2, ceil_mode=True), "ceil_mode"),
        (nn.ZeroPad2d(1), "ZeroPad2d.*pads"),
        (nn.ReflectionPad2d(1), "ReflectionPad2d.*pads"),
        (nn.ConvTranspose2d(4, 4, 2), "transposed"),
        (nn.Upsample(scale_factor=2), "upsamples"),
        (nn.Upsample(scale_factor=2, mode="bilinear"), "upsamples"),
        (nn.AdaptiveAvgPool2d(1), "whole map"),
        (nn.AdaptiveAvgPool2d(3), "whole map"),
        (nn.AdaptiveMaxPool2d(1), "whole map"),
        (SqueezeExcitation(4, 1), "'function'.*gates"),
        (nn.GroupNorm(2, 4), "GroupNorm"),
        (nn.InstanceNorm2d(4), "InstanceNorm2d"),
        (nn.BatchNorm2d(4, track_running_stats=False), "statistics of the batch"),
        (nn.Flatten(), "reshapes"),
        (nn.PixelShuffle(2), "PixelShuffle"),
        (nn.Softmax(dim=3), "mixes locations"),
        (lambda x: x.transpose(2, 3), "rows and columns"),
        (lambda x: x.flip(2), "mixes locations"),
        (lambda x: x.roll(1, 3), "mixes locations"),
        (lambda x: torch.cat((x, x), dim=2), "mixes locations"),
        (lambda x: x + x.mean(), "whole map"),
        (lambda x: x[:, :, ::2, :][:, :, :5] + x[:, :, :5], "strides"),
        (lambda x: x + x[:, :, :1, :1], "spreads"),
        (lambda x: x @ x, "not known"),
        (lambda x: F.scaled_dot_product_attention(x, x, x), "no exact"),
        (lambda x: F.conv2d(x, x[:, :, :3, :3]), "kernel computed"),
        (write_into_part, "part of a tensor"),
        (lambda x: torch.zeros_like(x), "does not return a map"),
        (lambda x: (x, x), "does not return a map"),
    ],
)
def test_layers_without_an_exact_field_are_named(function, why):
    with pytest.raises(ValueError, match=why):
        receptive_field(Calls(function), (4, 11, 11))


@pytest.mark.parametrize(
    ("function", "size", "stride", "offset"),
    [
        (nn.MaxPool2d(3, 2, ceil_mode=True), 3, 2, 0),  # 11 = 3 + 4 * 2: nothing hangs over
        (nn.MaxPool2d(2, dilation=3, stride=1), 4, 1, 0),
        (lambda x: x[:, :, 2:-1, 2:-1], 1, 1, 2),
        (lambda x: x[:, :, -4:, -4:], 1, 1, 7),
        (lambda x: x[:, :, 1::3, 1::3], 1, 3, 1),
        (lambda x: x.mean(dim=1), 1, 1, 0),
        (lambda x: x.softmax(dim=1), 1, 1, 0),
        (lambda x: torch.cat(x.chunk(2, dim=1)[::-1], dim=1), 1, 1, 0),
        (nn.ChannelShuffle(2), 1, 1, 0),
        (nn.Dropout2d(0.5), 1, 1, 0),
    ],
)
def test_layers_with_an_exact_field(function, size, stride, offset):
    field = receptive_field(Calls(function), (4, 11, 11))
    assert field == ReceptiveField((size,) * 2, (stride,) * 2, (offset,) * 2)


def test_other_networks():
    with torch.device("meta"):
        resnet, vgg = torchvision.models.resnet18(), torchvision.models.vgg16().features
    with pytest.raises(ValueError, match=r"'conv1' \(Conv2d\) has padding \(3, 3\)"):
        receptive_field(resnet, (3, 224, 224))
    # VGG without its paddings: 5 pools, 13 convolutions.
    for module in vgg:
        if isinstance(module, nn.Conv2d):
            module.padding = (0, 0)
    field = receptive_field(vgg, (3, 224, 224))
    assert field == ReceptiveField((212, 212), (32, 32), (0, 0))


def test_an_image_too_small_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="50x50"):
        receptive_field(AnchorNet(5), (3, 50, 50), method="features")
    with pytest.raises(ValueError, match=r"\(4, 2, 2\).*Kernel size"):
        receptive_field(nn.Conv2d(4, 4, 3), (4, 2, 2))


def test_the_module_is_left_alone():
    model = AnchorNet(5)
    receptive_field(model, (3, 95, 95), method="features", gates=[SqueezeExcitation])
    assert model.training
    assert all(not module._forward_hooks for module in model.modules())
    assert all(parameter.device.type == "cpu" for parameter in model.parameters())

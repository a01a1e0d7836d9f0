"""mbconv_chain against its specification: any widths, strides and layouts, not only AnchorNet's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from devices import on_devices
from hypothesis import given, settings
from hypothesis import strategies as st
from mbconv_cases import make_block, small_chain
from torch import Tensor

from anchornet_ext import ops, reference
from anchornet_ext._machine import using_threads

RAW = torch.ops.anchornet_ext.mbconv_chain


def raw_arguments(blocks: list[ops.MBConvBlock], skip: str = "centre") -> tuple[Any, ...]:
    """What the operator and its reference take after the images."""
    return (
        [tensor for block in blocks for tensor in block[:10]],
        [block.stride for block in blocks],
        [block.depthwise_stride for block in blocks],
        skip == "centre",
    )


def lay_out(x: Tensor, layout: str) -> Tensor:
    """`x` with other strides, NaN wherever the operator has nothing to read."""
    if layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    larger = torch.full([n + 2 for n in x.shape], torch.nan, device=x.device)
    if layout == "inside, channels_last":
        larger = larger.contiguous(memory_format=torch.channels_last)
    inside = larger[1:-1, 1:-1, 1:-1, 1:-1]
    inside.copy_(x)
    if layout == "transposed":
        return inside.transpose(2, 3).contiguous().transpose(2, 3)
    return inside


LAYOUTS = ["contiguous", "channels_last", "inside", "inside, channels_last", "transposed"]


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    # Widths on both sides of the vectors' (4, 8, 16) and the panels' (12, 24, 48).
    widths = st.one_of(st.integers(1, 60), st.sampled_from([96, 97, 144]))
    channels = draw(st.sampled_from([1, 2, 3, 4, 16]))
    before, blocks = channels, []
    for b in range(draw(st.integers(1, 3))):
        keep = b > 0 and draw(st.booleans())  # what makes a shortcut
        block = {
            "channels": before,
            "expanded": draw(widths),
            "squeezed": draw(st.integers(1, 20)),
            "out": before if keep else draw(widths),
            "kernel": 1 if keep else draw(st.sampled_from([1, 2, 3])),
            "stride": 1 if keep else draw(st.sampled_from([1, 2, 3])),
            "depthwise_stride": 1 if keep else draw(st.sampled_from([1, 2])),
        }
        blocks.append(block)
        before = block["out"]
    sides = [draw(st.integers(1, 12)) for _ in range(2)]  # of the output
    for block in reversed(blocks):
        stride = block["stride"]
        sides = [
            ((n - 1) * block["depthwise_stride"] + 2) * stride
            + block["kernel"]
            + draw(st.integers(0, stride - 1))
            for n in sides
        ]
    return {
        "seed": draw(st.integers(0, 2**31 - 1)),
        "size": (draw(st.integers(0, 3)), channels, *sides),
        "blocks": blocks,
        "layout": draw(st.sampled_from(LAYOUTS)),
        "skip": draw(st.sampled_from(["centre", "top_left"])),
    }


def assert_equals_reference(got: Tensor, images: Tensor, raw: tuple[Any, ...]) -> None:
    """Within float32's rounding of the specification in float64."""
    parameters, *rest = raw
    doubles = [tensor.double() for tensor in parameters]
    expected = reference.mbconv_chain(images.double(), doubles, *rest)
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(got.double(), expected, rtol=3e-4, atol=1e-5 * max(1.0, largest))


@settings(max_examples=40, deadline=None)
@given(problem=problems())
def test_equals_the_reference(problem: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(problem["seed"])
    images = lay_out(torch.randn(problem["size"], generator=generator), problem["layout"])
    blocks = [make_block(generator, **block) for block in problem["blocks"]]
    got = ops.mbconv_chain(images, blocks, problem["skip"])
    assert got.dtype == torch.float32
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert_equals_reference(got, images, raw_arguments(blocks, problem["skip"]))


@on_devices
def test_both_devices(device: str) -> None:
    images, blocks = small_chain()
    moved = [ops.MBConvBlock(*(t.to(device) for t in b[:10]), *b[10:]) for b in blocks]
    got = ops.mbconv_chain(images.to(device), moved)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert_equals_reference(got.cpu(), images, raw_arguments(blocks))


def test_parameters_of_any_strides() -> None:
    images, blocks = small_chain()
    strided = [
        ops.MBConvBlock(*(torch.stack((t, t + 1), dim=-1)[..., 0] for t in block[:10]), *block[10:])
        for block in blocks
    ]
    assert not strided[0].conv_weight.is_contiguous()
    assert torch.equal(ops.mbconv_chain(images, strided), ops.mbconv_chain(images, blocks))


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_an_image_does_not_depend_on_the_others_or_on_the_threads(threads: int) -> None:
    """Whole images for each thread, images whose rows are shared, and both in one call."""
    generator = torch.Generator().manual_seed(3)
    blocks = [
        make_block(generator, 3, 40, kernel=3, stride=2, depthwise_stride=2),
        make_block(generator, 24, expanded=70),
        make_block(generator, 24, expanded=50, out=32),
    ]
    images = torch.randn(7, 3, 67, 61, generator=generator)
    with using_threads(1):
        together = ops.mbconv_chain(images, blocks)
    with using_threads(threads):
        for batch in (1, 2, 4, 7):
            for part, expected in zip(images.split(batch), together.split(batch), strict=True):
                assert torch.equal(ops.mbconv_chain(part, blocks), expected)


def test_large_rows_are_made_in_several_bands() -> None:
    generator = torch.Generator().manual_seed(1)
    for deep in (1, 2):
        block = make_block(generator, 3, 33, kernel=3, depthwise_stride=deep)
        images = torch.randn(1, 3, 60, 500, generator=generator)
        assert_equals_reference(ops.mbconv_chain(images, [block]), images, raw_arguments([block]))


def test_activations_of_any_size() -> None:
    """A chain that passes a channel through, so that SiLU sees every magnitude."""
    one, none = torch.ones(1), torch.zeros(1)
    pick = torch.zeros(1, 1, 3, 3)
    pick[..., 1, 1] = 1
    block = ops.MBConvBlock(
        one.view(1, 1, 1, 1), none, pick, none, none[None], none, none[None], none + 30,
        one.view(1, 1, 1, 1), none,
    )  # fmt: skip
    values = torch.cat(
        [
            torch.linspace(-110, 110, 4001),
            torch.logspace(-30, 34, 400),
            -torch.logspace(-30, 1.9, 400),
            torch.tensor([0.0]),
        ]
    )
    images = values.repeat(3, 1)[None, None]
    images = torch.nn.functional.pad(images, (1, 1))
    got = ops.mbconv_chain(images, [block])[0, 0, 0]
    silu = torch.nn.functional.silu
    expected = silu(silu(values.double()))
    # Processors without fused multiply-adds lose some more of the exponent's last bits.
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-35)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_stays_in_its_image_and_shows(bad: float) -> None:
    images, blocks = small_chain()
    clean = ops.mbconv_chain(images, blocks)
    images[1, 1, 20, 20] = bad
    got = ops.mbconv_chain(images, blocks)
    assert torch.equal(got[[0, 2]], clean[[0, 2]])
    assert not got[1].isfinite().all()
    if bad != bad:  # through the gates everywhere, as in the reference
        assert got[1].isnan().all()


def test_opcheck() -> None:
    images, blocks = small_chain()
    images = images[:1, :, :20, :20]
    torch.library.opcheck(RAW.default, (images, *raw_arguments(blocks)))
    parameters, *rest = raw_arguments(blocks)
    with_gradient = [tensor.clone().requires_grad_() for tensor in parameters]
    torch.library.opcheck(
        RAW.default,
        (images, with_gradient, *rest),
        test_utils=("test_autograd_registration", "test_faketensor"),
    )


def test_gradients_are_those_of_the_reference() -> None:
    images, blocks = small_chain()
    results = []
    for function in (RAW, reference.mbconv_chain):
        parameters, *settings_ = raw_arguments(blocks)
        leaves = [t.clone().requires_grad_() for t in (images, *parameters)]
        output = function(leaves[0], leaves[1:], *settings_)
        weight = torch.linspace(-1, 1, output.numel()).view(output.shape)
        results.append(torch.autograd.grad((output * weight).sum(), leaves))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=3e-4, atol=1e-4)


def test_torch_compile_takes_it_whole() -> None:
    images, blocks = small_chain()
    compiled = torch.compile(ops.mbconv_chain, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(images, blocks), ops.mbconv_chain(images, blocks))


def change(field: str, value: object) -> list[ops.MBConvBlock]:
    blocks = small_chain()[1]
    return [blocks[0], blocks[1]._replace(**{field: value})]


WRONG_VALUE = {
    "conv_weight": (torch.ones(50, 23, 1, 1), r"\(50, 23, 1, 1\)"),
    "conv_bias": (torch.ones(49), r"\(49,?\)"),
    "depthwise_weight": (torch.ones(50, 1, 3, 5), r"\(50, 1, 3, 5\)"),
    "depthwise_bias": (torch.ones(50, 1), r"\(50, 1\)"),
    "squeeze_weight": (torch.ones(3, 49), r"\(3, 49\)"),
    "squeeze_bias": (torch.ones(4), r"\(4,?\)"),
    "excite_weight": (torch.ones(50, 2), r"\(50, 2\)"),
    "excite_bias": (torch.ones(()), r"\(\)"),
    "project_weight": (torch.ones(24, 50), r"\(24, 50\)"),
    "project_bias": (torch.ones(23), r"\(23,?\)"),
    "stride": (0, "got 0"),
    "depthwise_stride": (3, "got 3"),
}


@pytest.mark.parametrize("field", WRONG_VALUE)
def test_wrong_blocks_are_refused(field: str) -> None:
    value, text = WRONG_VALUE[field]
    images, _ = small_chain()
    blocks = change(field, value)
    with pytest.raises(ValueError, match=text):
        ops.mbconv_chain(images, blocks)
    with pytest.raises(RuntimeError, match="mbconv_chain: .*" + text):
        RAW(images, *raw_arguments(blocks))


@pytest.mark.parametrize(
    ("images", "error", "text"),
    [
        (torch.ones(3, 40, 40), ValueError, r"\(3, 40, 40\)"),
        (torch.ones(1, 0, 40, 40), ValueError, r"\(1, 0, 40, 40\)"),
        (torch.ones(1, 4, 40, 40), ValueError, r"\(20, 3, 3, 3\)"),
        (torch.ones(1, 3, 6, 40), ValueError, "at least 7x7, got 6x40"),
        (torch.ones(1, 3, 40, 14), ValueError, "at least 3x3, got 9x2"),
        (torch.ones(1, 3, 40, 40, dtype=torch.float64), TypeError, "float64"),
        (torch.ones(1, 3, 40, 40, dtype=torch.uint8), TypeError, "uint8"),
    ],
)
def test_wrong_images_are_refused(images: Tensor, error: type[Exception], text: str) -> None:
    blocks = small_chain()[1]
    with pytest.raises(error, match=text):
        ops.mbconv_chain(images, blocks)
    with pytest.raises(RuntimeError, match="mbconv_chain: "):
        RAW(images, *raw_arguments(blocks))


def test_other_wrong_arguments_are_refused() -> None:
    images, blocks = small_chain()
    with pytest.raises(ValueError, match="middle"):
        ops.mbconv_chain(images, blocks, "middle")
    with pytest.raises(ValueError, match="at least one block"):
        ops.mbconv_chain(images, [])
    with pytest.raises(TypeError, match="tuple"):
        ops.mbconv_chain(images, [tuple(blocks[0])])
    with pytest.raises(TypeError, match=r"conv_bias must be float32.*float64"):
        ops.mbconv_chain(images, change("conv_bias", torch.ones(50).double()))
    with pytest.raises(TypeError, match="conv_bias must be a tensor, got NoneType"):
        ops.mbconv_chain(images, change("conv_bias", None))
    with pytest.raises(TypeError, match="stride must be an int"):
        ops.mbconv_chain(images, change("stride", 1.5))
    with pytest.raises(ValueError, match="on meta and images on cpu"):
        ops.mbconv_chain(images, change("conv_bias", torch.ones(50, device="meta")))
    parameters, strides, depthwise_strides, centre = raw_arguments(blocks)
    with pytest.raises(RuntimeError, match="20 parameters, got 19"):
        RAW(images, parameters[:-1], strides, depthwise_strides, centre)
    with pytest.raises(RuntimeError, match="got 1 and 2"):
        RAW(images, parameters, strides, depthwise_strides[:1], centre)
    with pytest.raises(RuntimeError, match="at least one block"):
        RAW(images, [], [], [], centre)

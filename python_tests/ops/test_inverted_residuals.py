"""inverted_residuals against its specification, for whatever layers there may be."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anchornet_ext import _extension, ops, reference
from anchornet_ext._machine import using_threads
from anchornet_ext.ops import Convolution, GlobalMean, InvertedResidual, SqueezeExcitation

RUN = torch.ops.anchornet_ext.inverted_residuals.default
MAP_ACTIVATIONS = ["none", "relu", "relu6", "hardswish", "silu"]
ACTIVATIONS = [*MAP_ACTIVATIONS, "hardsigmoid", "sigmoid"]


class Weights:
    """Draws parameters that keep the size of the values about the same."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator) / math.prod(shape[1:]) ** 0.5

    def convolution(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        activation: str = "none",
        bias: bool = True,
    ) -> Convolution:
        weight = self.draw(outputs, inputs, kernel, kernel)
        return Convolution(weight, self.draw(outputs) if bias else None, stride, activation)

    def block(
        self,
        inputs: int,
        expanded: int | None,
        outputs: int,
        kernel: int = 3,
        stride: int = 1,
        activation: str = "hardswish",
        squeezed: int = 0,
        gates: tuple[str, str] = ("relu", "hardsigmoid"),
        residual: bool = False,
    ) -> InvertedResidual:
        channels = expanded or inputs
        excitation = None
        if squeezed:
            excitation = SqueezeExcitation(
                self.draw(squeezed, channels, 1, 1),
                self.draw(squeezed),
                self.draw(channels, squeezed),
                None,
                *gates,
            )
        return InvertedResidual(
            self.convolution(inputs, expanded, activation=activation) if expanded else None,
            self.convolution(1, channels, kernel, stride, activation),
            excitation,
            self.convolution(channels, outputs, bias=False),
            residual,
        )


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, list[Any]]:
    weights = Weights(draw(st.integers(0, 2**31 - 1)))
    # On both sides of the vectors' widths (4, 8, 16) and of the panels' (12, 24, 48).
    widths = st.one_of(st.integers(1, 60), st.sampled_from([96, 97, 130]))
    channels = before = draw(st.sampled_from([1, 3, 16, 23]))
    layers: list[Any] = []
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.integers(0, 5)) == 0:
            layers.append(GlobalMean())
        if draw(st.integers(0, 3)) == 0:
            outputs, kernel, stride = (
                draw(widths),
                draw(st.sampled_from([1, 3, 5, 7])),
                draw(st.integers(1, 3)),
            )
            layers.append(
                weights.convolution(
                    before, outputs, kernel, stride, draw(st.sampled_from(MAP_ACTIVATIONS))
                )
            )
            before = outputs
            continue
        residual = draw(st.booleans())
        outputs = before if residual else draw(widths)
        layers.append(
            weights.block(
                before,
                draw(st.one_of(st.none(), widths)),
                outputs,
                draw(st.sampled_from([3, 5])),
                1 if residual else draw(st.sampled_from([1, 2])),
                draw(st.sampled_from(MAP_ACTIVATIONS)),
                draw(st.sampled_from([0, 1, 5, 20])),
                (draw(st.sampled_from(ACTIVATIONS)), draw(st.sampled_from(ACTIVATIONS[5:]))),
                residual,
            )
        )
        before = outputs
    if draw(st.booleans()):
        layers.append(GlobalMean())
    side = draw(st.sampled_from([2, 9, 40]))  # as large as maps that are made in bands
    batch = draw(st.integers(0, 9 if side < 40 else 2))
    size = draw(st.integers(1, side)), draw(st.integers(1, side))
    images = torch.randn(batch, channels, *size, generator=weights.generator)
    if draw(st.booleans()):
        images = images.contiguous(memory_format=torch.channels_last)
    return images, layers


def in_float64(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double()
    if isinstance(value, tuple):
        return type(value)(*map(in_float64, value))
    return value


def assert_equals_reference(images: Tensor, layers: list[Any]) -> None:
    got = ops.inverted_residuals(images, ops.pack_layers(layers))
    expected = reference.inverted_residuals(images.double(), [*map(in_float64, layers)])
    assert got.dtype == torch.float32
    assert got.is_contiguous(memory_format=torch.channels_last)
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(got.double(), expected, rtol=3e-4, atol=2e-5 * max(1.0, largest))


@settings(max_examples=60, deadline=None)
@given(problem=problems())
def test_equals_the_specification(problem: tuple[Tensor, list[Any]]) -> None:
    assert_equals_reference(*problem)


@pytest.mark.parametrize("squeezed", [0, 8])
@pytest.mark.parametrize("expanded", [None, 64])
def test_maps_that_are_made_in_bands(expanded: int | None, squeezed: int) -> None:
    weights = Weights(1)
    layers = [
        weights.convolution(3, 32, 3, 2, "hardswish"),
        weights.block(32, expanded, 32, 5, 1, "silu", squeezed, residual=True),
        weights.block(32, expanded, 24, 3, 2, "relu6", squeezed),
    ]
    assert_equals_reference(weights.draw(2, 3, 131, 140), layers)


@pytest.mark.parametrize("batch", [1, 3, 80])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_means_and_what_comes_after_them(threads: int, batch: int) -> None:
    weights = Weights(7)
    layers = [
        weights.convolution(3, 24, 3, 2, "relu"),
        weights.block(24, 72, 150, 5, 2, "silu", 12),
        GlobalMean(),
        weights.convolution(150, 200, activation="hardswish"),
        weights.convolution(200, 70, activation="silu"),
    ]
    images = weights.draw(batch, 3, 19, 26)
    packed = ops.pack_layers(layers)
    with using_threads(threads):
        assert_equals_reference(images, layers)
        got = ops.inverted_residuals(images, packed)
    with using_threads(1):
        alone = [ops.inverted_residuals(one[None], packed) for one in images]
    assert torch.equal(got, torch.cat(alone))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_an_image_does_not_depend_on_the_others_or_the_threads(threads: int) -> None:
    weights = Weights(2)
    layers = ops.pack_layers(
        [
            weights.convolution(3, 24, 3, 2, "relu"),
            weights.block(24, 100, 24, 3, 1, "hardswish", 8, residual=True),
            weights.block(24, 72, 200, 5, 2, "silu", 12),
            weights.convolution(200, 70, activation="hardswish"),
        ]
    )
    images = weights.draw(7, 3, 90, 77)
    expected = ops.inverted_residuals(images, layers)
    with using_threads(threads):
        alone = [ops.inverted_residuals(one[None], layers) for one in images]
        together = ops.inverted_residuals(images, layers)
    assert torch.equal(torch.cat(alone), expected)
    assert torch.equal(together, expected)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_the_weights_of_few_pixels(threads: int) -> None:
    weights = Weights(4)
    convolutions = [weights.convolution(70, 400, activation="silu"), weights.convolution(400, 130)]
    layers, images = ops.pack_layers(convolutions), weights.draw(40, 70, 1, 1)
    with using_threads(threads):
        shared = ops.inverted_residuals(images, layers)
        assert_equals_reference(images, convolutions)
    with using_threads(1):
        assert torch.equal(shared, ops.inverted_residuals(images, layers))


_ON_ANOTHER_INSTRUCTION_SET = """
import sys
sys.path.insert(0, {folder!r})
from test_inverted_residuals import *
import importlib
assert importlib.import_module("anchornet_ext._C").vector_width() == {width}
weights = Weights(3)
blocks = [weights.block(21, e, 21, k, 1, a, q, residual=True)
          for e, k, a, q in [(50, 3, "silu", 5), (None, 5, "hardswish", 0), (130, 5, "relu6", 9)]]
assert_equals_reference(weights.draw(3, 21, 11, 9), blocks)
assert_equals_reference(weights.draw(1, 3, 97, 99), [
    weights.convolution(3, 21, 3, 2, "relu"), weights.block(21, 60, 40, 3, 2), *[
    weights.block(40, 240, 40, 5, 1, squeezed=20, residual=True)],
    GlobalMean(), weights.convolution(40, 90, activation="hardswish")])
"""


@pytest.mark.parametrize(("capability", "width"), [("default", 4), ("avx2", 8)])
def test_other_instruction_sets(capability: str, width: int) -> None:
    if capability == "avx2" and _extension.instruction_set() == "any":
        pytest.skip("there are kernels for any processor only")
    code = _ON_ANOTHER_INSTRUCTION_SET.format(folder=os.path.dirname(__file__), width=width)
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=120)


def test_nan_and_infinity_come_through() -> None:
    weight = torch.zeros(17, 1, 1, 1)
    weight[0] = 1
    for activation in MAP_ACTIVATIONS:
        layers = ops.pack_layers([Convolution(weight, None, 1, activation)])
        images = torch.tensor([float("nan"), float("inf")]).reshape(2, 1, 1, 1)
        got = ops.inverted_residuals(images, layers)
        assert got[0, 0].isnan().all()
        assert got[1, 0].item() == (6 if activation == "relu6" else float("inf"))


def test_the_mean_of_nan_and_infinity() -> None:
    layers = ops.pack_layers([GlobalMean(), Convolution(torch.eye(3)[:, :, None, None])])
    images = torch.ones(3, 3, 2, 5)
    images[0, 1, 1, 3] = float("nan")
    images[1, 2, 0, 4] = float("inf")
    got = ops.inverted_residuals(images, layers).flatten(1)
    assert got[0].isnan().all()  # times the zeros of a matrix as well
    assert not got[1, 2].isfinite()
    assert torch.equal(got[2], torch.ones(3))


def test_registered_as_it_is() -> None:
    weights = Weights(4)
    packed = ops.pack_layers(
        [
            weights.convolution(3, 20, 3, 2),
            weights.block(20, 40, 24, 5, 2, squeezed=4),
            GlobalMean(),
            weights.convolution(24, 7),
        ]
    )
    images = weights.draw(2, 3, 30, 21).contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(RUN, (images, packed.weights, list(packed.settings)))


def test_compiles_as_one_graph() -> None:
    weights = Weights(6)
    packed = ops.pack_layers([weights.convolution(3, 8, 3, 2), weights.block(8, 20, 8, 3)])
    images = weights.draw(2, 3, 30, 21)

    def run(images: Tensor) -> Tensor:
        return ops.inverted_residuals(images * 2, packed).relu()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), run(images))


def test_layers_that_do_not_fit() -> None:
    weights = Weights(5)
    good = weights.block(8, 20, 8, squeezed=3, residual=True)

    def refused(layer: Any, message: str, kind: type[Exception] = ValueError) -> None:
        with pytest.raises(kind, match=message):
            ops.pack_layers([weights.convolution(3, 8), layer])

    ops.pack_layers([weights.convolution(3, 8), good])
    for layers in ([], [GlobalMean()]):
        with pytest.raises(ValueError, match="at least one layer with parameters, got "):
            ops.pack_layers(layers)
    refused("block", r"layers\[1\] must be a Convolution, .* or a GlobalMean, got str", TypeError)
    refused(GlobalMean, r"layers\[1\] must be .*, got type", TypeError)
    refused(weights.convolution(9, 4), r"layers\[1\].weight must be \(any, 8, .*got \(4, 9, 1, 1\)")
    refused(weights.convolution(8, 4, 2), r"kernel of layers\[1\] must be .*odd, got 2x2")
    refused(weights.convolution(8, 4, stride=0), "stride must be at least 1, got 0")
    refused(weights.convolution(8, 4, activation="gelu"), "activation must be one of .*'gelu'")
    refused(
        weights.convolution(8, 4, activation="sigmoid"), "activation must be one of .*'sigmoid'"
    )
    refused(good._replace(depthwise=weights.convolution(1, 20, 7)), r"in \(3, 5\), got 7x7")
    refused(good._replace(depthwise=weights.convolution(1, 20, 3, 3)), r"in \(1, 2\), got 3")
    refused(
        good._replace(depthwise=weights.convolution(1, 21, 3)), r"\(20, 1, .*got \(21, 1, 3, 3\)"
    )
    refused(good._replace(expand=None), r"depthwise.weight must be \(8, 1, .*got \(20, 1, 3, 3\)")
    refused(good._replace(project=weights.convolution(20, 9)), "20|8 channels in and 9 out")
    refused(good._replace(project=weights.convolution(20, 8, activation="relu")), "be 'none', got")
    refused(
        good._replace(excitation=good.excitation._replace(gate="tanh")),
        "gate must be one of .*'tanh'",
    )
    refused(
        good._replace(excitation=good.excitation._replace(squeeze=weights.draw(3, 19))),
        r"squeeze must be \(any, 20\), got \(3, 19\)",
    )
    refused(Convolution(weights.draw(4, 8, 1, 1).double()), "must be float32, got", TypeError)
    refused(Convolution(torch.ones(4, 8, 1, 1, device="meta")), "on the CPU, got meta")


def test_images_that_do_not_fit() -> None:
    packed = ops.pack_layers([Weights(6).convolution(3, 8, 3)])
    with pytest.raises(TypeError, match=r"images must be float32, got torch\.float64"):
        ops.inverted_residuals(torch.ones(1, 3, 4, 4).double(), packed)
    with pytest.raises(ValueError, match=r"images must be \(B, C, H, W\), got \(3, 4, 4\)"):
        ops.inverted_residuals(torch.ones(3, 4, 4), packed)
    with pytest.raises(
        ValueError, match=r"images must be \(B, C, H, W\), got shape \(1, 3, 0, 4\)"
    ):
        ops.inverted_residuals(torch.ones(1, 3, 0, 4), packed)
    with pytest.raises(ValueError, match=r"packed as .* for these layers, got shape"):
        ops.inverted_residuals(torch.ones(1, 4, 4, 4), packed)
    with pytest.raises(ValueError, match="12 settings for each of at least one layer, got 11"):
        ops.inverted_residuals(
            torch.ones(1, 3, 4, 4), packed._replace(settings=packed.settings[:-1])
        )

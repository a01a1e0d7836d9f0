"""convolve_maps against torch's convolution, for whatever a convolution can be told."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anchornet_ext import ops, reference
from anchornet_ext._machine import using_threads

CONVOLVE = torch.ops.anchornet_ext.convolve_maps.default


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 1000),
    batch=st.integers(0, 9),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    size=st.tuples(st.integers(0, 7), st.integers(0, 7)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    # Parts of a tap, several taps in a chunk, and panels of every width.
    inputs=st.sampled_from([1, 5, 16, 48, 600, 1030]),
    outputs=st.sampled_from([1, 16, 23, 40, 48, 64, 65, 100, 130]),
    bias=st.booleans(),
    add=st.booleans(),
    activation=st.sampled_from(["none", "relu"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_equals_the_specification(
    seed, batch, kernel, size, stride, padding, dilation, inputs, outputs, bias, add, activation,
    dtype,
):  # fmt: skip
    reach = [dilation[d] * (kernel[d] - 1) + 1 for d in range(2)]
    height, width = (max(1, size[d] + reach[d] - 2 * padding[d]) for d in range(2))
    maps = in_channels_last(draw(batch, inputs, height, width, seed=seed))
    weight = draw(outputs, inputs, *kernel, seed=seed + 1) / (inputs * kernel[0] * kernel[1]) ** 0.5
    biases = draw(outputs, seed=seed + 2).to(dtype) if bias else None
    maps, weight = maps.to(dtype), weight.to(dtype)
    expected = reference.convolve_maps(
        maps.double(),
        weight.double(),
        None if biases is None else biases.double(),
        stride,
        padding,
        dilation,
    )
    added = draw(*expected.shape, seed=seed + 3).to(dtype) if add else None
    if added is not None:
        expected = expected + added
    if activation == "relu":
        expected = expected.relu()
    got = ops.convolve_maps(
        maps,
        ops.pack_maps(weight),
        biases,
        stride=stride,
        padding=padding,
        dilation=dilation,
        add=added,
        activation=activation,
    )
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert got.dtype == dtype
    # Of bfloat16 the sums are as exact, and rounded once, to eight bits.
    rounding = 2**-8 if dtype == torch.bfloat16 else 0
    torch.testing.assert_close(got.double(), expected, rtol=3e-4 + rounding, atol=2e-5)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_image_does_not_depend_on_the_others(
    threads: int, kernel: int, dtype: torch.dtype
) -> None:
    maps = draw(40, 70, 3, 5).to(dtype)
    weight = ops.pack_maps(draw(200, 70, kernel, kernel).to(dtype))
    padding = (kernel // 2,) * 2
    with using_threads(threads):
        together = ops.convolve_maps(maps, weight, padding=padding)
        alone = [ops.convolve_maps(one[None], weight, padding=padding) for one in maps]
    assert torch.equal(torch.cat(alone), together)


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_maps_without_pixels_are_refused(size: tuple[int, int]) -> None:
    weight = ops.pack_maps(draw(24, 16, 3, 3))
    with pytest.raises(ValueError, match=r"must be \(B, C, H, W\)"):
        ops.convolve_maps(torch.zeros(1, 16, *size), weight, padding=(3, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_and_infinity_come_through(dtype: torch.dtype) -> None:
    maps = torch.tensor([float("nan"), float("inf"), -float("inf")], dtype=dtype)
    weights = ops.pack_maps(torch.ones(17, 1, 1, 1, dtype=dtype))
    got = ops.convolve_maps(maps.reshape(3, 1, 1, 1), weights, activation="relu")
    assert got[0].isnan().all()
    assert (got[1] == float("inf")).all()
    assert (got[2] == 0).all()


def test_bfloat16_is_rounded_once_to_the_nearest() -> None:
    # 1 + 2^-8 lies in the middle and goes to the even 1; a little more goes up; the sum of three
    # halves of a step is not lost on the way.
    maps = torch.tensor([1.0, 2**-8, 2**-8, 2**-16], dtype=torch.bfloat16).reshape(1, 4, 1, 1)
    weight = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 1], [1, 1, 1, 1], [-1, -1, 0, -1]])
    weights = ops.pack_maps(weight[:, :, None, None].bfloat16())
    got = ops.convolve_maps(maps, weights).flatten().tolist()
    assert got == [1.0, 1 + 2**-7, 1 + 2**-7, -1 - 2**-7]
    add = torch.full((1, 4, 1, 1), 2**-16, dtype=torch.bfloat16)
    assert ops.convolve_maps(maps, weights, add=add).flatten().tolist()[0] == 1 + 2**-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_it_has_the_same_shape(dtype: torch.dtype) -> None:
    maps, weight = in_channels_last(draw(2, 5, 6, 7).to(dtype)), draw(20, 5, 3, 3).to(dtype)
    packed = ops.pack_maps(weight)
    arguments = (maps, packed.weight, None, 20, [3, 3], [2, 1], [1, 0], [1, 2], None, 1)
    torch.library.opcheck(CONVOLVE, arguments)


def test_torch_compile_takes_it_whole() -> None:
    maps, weights = in_channels_last(draw(2, 5, 6, 7)), ops.pack_maps(draw(20, 5, 3, 3))
    bias, add = draw(20, seed=1), draw(2, 20, 6, 7, seed=2)

    def run(maps: Tensor, add: Tensor) -> Tensor:
        return ops.convolve_maps(maps, weights, bias, padding=(1, 1), add=add, activation="relu")

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(maps, add), run(maps, add))


@pytest.mark.parametrize(
    "change",
    [
        {"kernel": (2**62, 4), "padding": (2**61, 0)},
        {"kernel": (2**31 - 1, 2**31 - 1), "padding": (2**30, 2**30)},
        {"stride": (2**63 - 1, 1)},
        {"padding": (2**62, 0)},
        {"padding": (2**31 - 1, 2**31 - 1)},  # a result of 2^64 pixels
        {"dilation": (2**62, 1)},
        {"dilation": (1, 2**63 - 1)},
        {"channels": 2**63 - 1},
        {"channels": 2**59},
    ],
)
def test_numbers_that_overflow_are_refused(change: dict[str, object]) -> None:
    arguments = {
        "maps": in_channels_last(draw(1, 5, 6, 7)),
        "weight": ops.pack_maps(draw(20, 5, 3, 3)).weight,
        "bias": None,
        "channels": 20,
        "kernel": (3, 3),
        "stride": (1, 1),
        "padding": (1, 1),
        "dilation": (1, 1),
        "add": None,
        "activation": 0,
    }
    with pytest.raises(RuntimeError, match="convolve_maps: "):
        CONVOLVE(**{**arguments, **change})


def test_arguments_that_do_not_fit() -> None:
    maps, weights = draw(2, 5, 6, 7), ops.pack_maps(draw(20, 5, 3, 3))
    with pytest.raises(TypeError, match=r"maps must be float32 or bfloat16, got torch\.float64"):
        ops.convolve_maps(maps.double(), weights)
    with pytest.raises(TypeError, match=r"weight must be torch\.bfloat16 like the maps, got torch"):
        ops.convolve_maps(maps.bfloat16(), weights)
    with pytest.raises(TypeError, match=r"add must be torch\.float32 like the maps, got torch"):
        ops.convolve_maps(maps, weights, add=draw(2, 20, 4, 5).bfloat16())
    with pytest.raises(TypeError, match=r"weight must be float32 or bfloat16, got torch\.float16"):
        ops.pack_maps(draw(20, 5, 3, 3).half())
    with pytest.raises(
        RuntimeError, match=r"weight must be packed as one row .* of the maps' dtype"
    ):
        CONVOLVE(in_channels_last(maps), weights.weight.bfloat16(), None, 20, [3, 3], [1, 1],
                 [0, 0], [1, 1], None, 0)  # fmt: skip
    with pytest.raises(ValueError, match="activation must be one of none, relu, got 'gelu'"):
        ops.convolve_maps(maps, weights, activation="gelu")
    with pytest.raises(ValueError, match=r"maps must be \(B, C, H, W\), got \(5, 6, 7\)"):
        ops.convolve_maps(maps[0], weights)
    with pytest.raises(ValueError, match="weight must be packed as"):
        ops.convolve_maps(maps[:, :4], weights)
    with pytest.raises(ValueError, match=r"bias must be \(20\)"):
        ops.convolve_maps(maps, weights, draw(21))
    with pytest.raises(ValueError, match="does not fit maps of 2x7"):
        ops.convolve_maps(maps[:, :, :2], weights)
    with pytest.raises(ValueError, match="stride must be two numbers of at least 1"):
        ops.convolve_maps(maps, weights, stride=(0, 1))
    with pytest.raises(ValueError, match=r"add must be \(2, 20, 4, 5\)"):
        ops.convolve_maps(maps, weights, add=draw(2, 20, 5, 4))
    with pytest.raises(ValueError, match=r"weight must be \(O, C, k, l\), got \(20, 5\)"):
        ops.pack_maps(draw(20, 5))

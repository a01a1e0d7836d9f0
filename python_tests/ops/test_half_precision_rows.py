"""Half precision in gather_patches and scatter_patches on the CPU: every number is tried.

Rows here are longer than what the kernels take at once, and no multiple of a vector.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from patch_cases import FORMATS, lay_out, random_images
from torch import Tensor

from anchornet_ext import ops, reference

HALVES = (torch.float16, torch.bfloat16)
#: Every pair with half precision on one side or both.
PAIRS = (
    *itertools.product((torch.uint8, torch.float32, torch.float64), HALVES),
    *itertools.product(HALVES, (torch.float16, torch.bfloat16, torch.float32, torch.float64)),
)


def every_half(dtype: torch.dtype) -> Tensor:
    """All 65536 bit patterns, the infinities and NaN among them."""
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)


def around_every_half(dtype: torch.dtype) -> Tensor:
    """float32: each half, what lies halfway to its neighbours, and just beside all of these."""
    halves = every_half(dtype).double()
    halves = halves[halves.isfinite()].sort().values
    ends = torch.tensor([-1e38, 1e38, -float("inf"), float("inf"), float("nan")])
    middles = (halves[1:] + halves[:-1]) / 2
    exact = torch.cat((halves, middles, ends.double())).float()
    up, down = torch.tensor(float("inf")), torch.tensor(-float("inf"))
    return torch.cat((exact, exact.nextafter(up), exact.nextafter(down)))


def same(a: Tensor, b: Tensor) -> bool:
    """Bit for bit, but for the payloads of NaN."""
    assert a.dtype == b.dtype
    unequal_bits = a.view(torch.int8).view(*a.shape, -1) != b.view(torch.int8).view(*b.shape, -1)
    return not (unequal_bits.any(-1) & ~(a.isnan() & b.isnan())).any()


def gathered(row: Tensor, dtype: torch.dtype) -> Tensor:
    corner = torch.zeros(1, 2, dtype=torch.int64)
    return ops.gather_patches(row.view(1, 1, 1, -1), corner, (1, len(row)), dtype=dtype).flatten()


@pytest.mark.parametrize("dtype", HALVES)
def test_every_half_is_widened(dtype: torch.dtype) -> None:
    halves = every_half(dtype)
    assert same(gathered(halves, torch.float32), halves.float())


@pytest.mark.parametrize("dtype", HALVES)
def test_rounding_is_that_of_torch(dtype: torch.dtype) -> None:
    floats = around_every_half(dtype)
    assert same(gathered(floats, dtype), floats.to(dtype))


@pytest.mark.parametrize("dtype", HALVES)
def test_every_half_is_summed(dtype: torch.dtype) -> None:
    """With a number of its own size, so that sums fall between two halves."""
    halves = every_half(dtype)
    others = halves.roll(7)
    patches = torch.stack((halves, others)).view(2, 1, 1, -1)
    places = torch.zeros(2, 2, dtype=torch.int64)
    index = torch.zeros(2, dtype=torch.int64)
    summed = ops.scatter_patches(patches, places, (1, 1, 1, len(halves)), index)
    assert same(summed.flatten(), (halves.float() + others.float()).to(dtype))


@pytest.mark.parametrize(("source", "to"), PAIRS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "every other column"])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_long_rows(
    source: torch.dtype, to: torch.dtype, layout: str, memory_format: torch.memory_format
) -> None:
    index, corners = torch.tensor([1, 0, 1]), torch.tensor([[0, 10], [1, 0], [1, 7]])
    for channels in (3, 5):  # three channels have loops of their own
        generator = torch.Generator().manual_seed(channels)
        images = lay_out(random_images((2, channels, 6, 611), source, generator), layout)
        mean, std = torch.linspace(0.4, 0.6, channels), torch.linspace(0.2, 0.3, channels)
        for means, stds in ((None, None), (mean, std)):
            patches = ops.gather_patches(
                images,
                corners,
                (5, 601),
                index,
                mean=means,
                std=stds,
                dtype=to,
                memory_format=memory_format,
            )
            size = (5, 601)
            expected = reference.gather_patches(images, index, corners, size, means, stds, to)
            assert torch.equal(patches, expected)


@pytest.mark.parametrize("to", HALVES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_statistics_that_are_no_numbers(
    to: torch.dtype, channels: int, memory_format: torch.memory_format
) -> None:
    """A NaN stays one, and an infinity too."""
    images = torch.arange(256, dtype=torch.uint8).repeat(1, channels, 3, 1)
    images = images.contiguous(memory_format=memory_format)
    corner = torch.zeros(1, 2, dtype=torch.int64)
    for strange in (float("nan"), -float("nan"), float("inf"), -float("inf")):
        mean, std = torch.full((channels,), strange), torch.full((channels,), 0.5)
        patches = ops.gather_patches(images, corner, (3, 256), mean=mean, std=std, dtype=to)
        expected = reference.gather_patches(images, corner[:, 0], corner, (3, 256), mean, std, to)
        assert same(patches.contiguous(), expected.contiguous())

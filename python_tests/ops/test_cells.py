"""convolve_cells and fuse_cells against their specifications, and those against torch's layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from devices import on_kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from anchornet_ext import ops, reference
from anchornet_ext._machine import using_threads
from anchornet_ext.reference.cells import ACTIVATIONS, with_halo

CONVOLVE = torch.ops.anchornet_ext.convolve_cells.default
FUSE = torch.ops.anchornet_ext.fuse_cells.default


def convolution_case(
    seed: int,
    kernel: int,
    counts: list[int],
    sources: int,
    size: tuple[int, int],
    channels: tuple[int, int],
    add: str,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, ops.CellWeights, Tensor, dict[str, Any]]:
    """Cells, weights, neighbours, and what is added."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(counts)
    inputs, outputs = channels

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    def index(*shape: int, limit: int) -> Tensor:
        return torch.randint(-1, limit, shape, generator=generator).to(device)

    scale = (kernel * kernel * inputs) ** -0.5
    weights = ops.pack_cells(
        draw(len(counts), outputs, inputs, kernel, kernel) * scale, draw(len(counts), outputs)
    )
    neighbours = index(count, kernel * kernel, limit=sources)
    options: dict[str, Any] = {}
    if add != "nothing":
        options["add"] = draw(sources if add == "gathered" else count, *size, outputs)
    if add == "gathered":
        options["add_index"] = index(count, limit=sources)
    return draw(sources, *size, inputs), weights, neighbours, options


@on_kernels
@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1000),
    kernel=st.sampled_from([1, 3]),
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=4),
    sources=st.integers(0, 12),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    channels=st.tuples(st.integers(1, 20), st.sampled_from([1, 7, 16, 24, 32, 40, 64, 70, 130])),
    add=st.sampled_from(["nothing", "all", "gathered"]),
    activation=st.sampled_from(ACTIVATIONS),
)
def test_convolution_equals_the_specification(
    device, seed, kernel, counts, sources, size, channels, add, activation
):
    cells, weights, neighbours, options = convolution_case(
        seed, kernel, counts, sources, size, channels, add, device
    )
    got = ops.convolve_cells(cells, weights, counts, neighbours, activation=activation, **options)
    add_to = options.get("add")
    expected = reference.convolve_cells(
        cells.double(),
        neighbours,
        weights.weight.double(),
        weights.bias.double(),
        counts,
        weights.channels,
        None if add_to is None else add_to.double(),
        options.get("add_index"),
        ACTIVATIONS.index(activation),
    )
    torch.testing.assert_close(got.double(), expected, rtol=3e-4, atol=1e-5)


@settings(deadline=None, max_examples=20)
@given(
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    batch=st.integers(1, 2),
    seed=st.integers(0, 100),
)
def test_cells_of_a_whole_map_are_convolved_as_the_map_is(size, grid, batch, seed):
    """With every cell there, a 3x3 convolution of cells is that of the map with zero padding."""
    generator = torch.Generator().manual_seed(seed)
    (height, width), (rows, columns) = size, grid
    x = torch.randn(batch, 5, rows * height, columns * width, generator=generator)
    kernel = torch.randn(18, 5, 3, 3, generator=generator)
    bias = torch.randn(18, generator=generator)
    tiles = x.unflatten(3, (columns, width)).unflatten(2, (rows, height))
    cells = tiles.permute(0, 2, 4, 3, 5, 1).reshape(-1, height, width, 5)
    numbers = torch.arange(batch * rows * columns).view(batch, 1, rows, columns)
    padded = nn.functional.pad(numbers, (1, 1, 1, 1), value=-1).float()
    around = nn.functional.unfold(padded, 3).long().transpose(1, 2).reshape(-1, 9)
    got = ops.convolve_cells(
        cells, ops.pack_cells(kernel[None], bias[None]), [len(cells)], around, activation="relu"
    )
    expected = nn.functional.conv2d(x, kernel, bias, padding=1).relu()
    tiles = expected.unflatten(3, (columns, width)).unflatten(2, (rows, height))
    expected = tiles.permute(0, 2, 4, 3, 5, 1).reshape(-1, height, width, 18)
    torch.testing.assert_close(got, expected, rtol=3e-4, atol=1e-5)
    halo = with_halo(cells, around)
    assert torch.equal(halo[:, 1:-1, 1:-1], cells)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kernel", [1, 3])
def test_other_dtypes_go_through_torch(dtype, kernel):
    case = convolution_case(3, kernel, [5, 4], 6, (2, 3), (8, 20), "gathered", dtype=dtype)
    cells, weights, neighbours, options = case
    got = ops.convolve_cells(cells, weights, [5, 4], neighbours, activation="relu", **options)
    assert got.dtype == dtype
    wide = ops.CellWeights(weights.weight.float(), weights.bias.float(), 20, kernel * kernel)
    options = {**options, "add": options["add"].float()}
    expected = ops.convolve_cells(
        cells.float(), wide, [5, 4], neighbours, activation="relu", **options
    )
    torch.testing.assert_close(got.float(), expected, rtol=2e-2, atol=3e-2)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_cell_does_not_depend_on_the_others(threads):
    cells, weights, neighbours, _ = convolution_case(1, 3, [70], 50, (3, 3), (20, 70), "nothing")
    with using_threads(threads):
        together = ops.convolve_cells(cells, weights, [70], neighbours)
    for n in (0, 13, 69):
        alone = ops.convolve_cells(cells, weights, [1], neighbours[n : n + 1])
        assert torch.equal(alone[0], together[n])


def test_nan_and_infinity_come_through():
    cells = torch.tensor([[[[float("nan")]]], [[[float("inf")]]], [[[-float("inf")]]]])
    weights = ops.pack_cells(torch.ones(1, 1, 1, 1, 1), torch.zeros(1, 1))
    got = ops.convolve_cells(cells, weights, [3], activation="relu").flatten().tolist()
    assert got[0] != got[0]
    assert got[1:] == [float("inf"), 0]


@on_kernels
@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1000),
    batch=st.integers(0, 3),
    groups=st.integers(1, 3),
    share=st.integers(1, 20),
    base=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    grid=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    cell=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    cut=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    count=st.integers(0, 5),
)
def test_fusion_equals_the_specification(
    device, seed, batch, groups, share, base, grid, cell, cut, count
):
    generator = torch.Generator().manual_seed(seed)
    channels = groups * share
    size = [
        max(1, rows * pixels - less) for rows, pixels, less in zip(grid, cell, cut, strict=True)
    ]
    low = torch.randn(batch, channels, *base, generator=generator).to(device)
    cells = torch.randn(count, *cell, share, generator=generator).to(device)
    slots = torch.randint(-1, count, (batch, groups, *grid), generator=generator).to(device)
    a = torch.rand(batch, channels, generator=generator).to(device)
    got = ops.fuse_cells(low, cells, slots, a, (size[0], size[1]))
    expected = reference.fuse_cells(low, cells, slots, a, *size)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert got.is_contiguous(memory_format=torch.channels_last)
    wide = [t.double() if t.is_floating_point() else t for t in (low, cells, slots, a)]
    torch.testing.assert_close(
        ops.fuse_cells(*wide, (size[0], size[1])).float(), expected, rtol=1e-5, atol=1e-6
    )


def test_operators_are_registered_as_torch_wants_them():
    cells, weights, neighbours, options = convolution_case(
        1, 3, [3, 4], 5, (2, 2), (6, 10), "gathered"
    )
    torch.library.opcheck(
        CONVOLVE,
        (
            cells,
            neighbours,
            weights.weight,
            weights.bias,
            [3, 4],
            10,
            options["add"],
            options["add_index"],
            1,
        ),
    )
    slots = torch.tensor([[[[0, -1], [1, 0]]]])
    low = torch.randn(1, 6, 2, 2).contiguous(memory_format=torch.channels_last)
    torch.library.opcheck(FUSE, (low, cells, slots, torch.rand(1, 6), 3, 4))


def test_the_operators_compile():
    cells, weights, neighbours, _ = convolution_case(1, 3, [3, 4], 5, (2, 2), (6, 10), "nothing")

    @torch.compile(fullgraph=True, backend="eager")
    def run(cells: Tensor) -> Tensor:
        return ops.convolve_cells(cells, weights, [3, 4], neighbours, activation="relu")

    assert torch.equal(
        run(cells), ops.convolve_cells(cells, weights, [3, 4], neighbours, activation="relu")
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"neighbours": torch.full((7, 9), 5)}, ValueError, "one of 5 cells, got 5"),
        ({"neighbours": torch.full((7, 9), -2)}, ValueError, "got -2"),
        ({"neighbours": torch.zeros(7, 1, dtype=torch.int64)}, ValueError, "9 taps"),
        ({"neighbours": torch.zeros(7, 9)}, ValueError, "int64"),
        ({"neighbours": None}, ValueError, "9 taps, but neighbours for 1"),
        ({"counts": [3, 3]}, ValueError, "add up to 6, but there are 7"),
        ({"counts": [3, 5]}, ValueError, "counts"),
        ({"counts": [-1, 8]}, ValueError, "counts"),
        ({"counts": [7]}, ValueError, "weight must be packed"),
        ({"cells": torch.zeros(5, 2, 2, 7)}, ValueError, "weight must be packed"),
        ({"cells": torch.zeros(5, 2, 2)}, ValueError, "cells must be"),
        ({"cells": torch.zeros(5, 2, 2, 6).int()}, TypeError, "floating point"),
        ({"cells": torch.zeros(5, 2, 2, 6).double()}, TypeError, "torch.float64"),
        ({"add": torch.zeros(6, 2, 2, 10)}, ValueError, "add must be"),
        ({"add_index": torch.zeros(7, dtype=torch.int64)}, ValueError, "without add"),
        ({"activation": "silu"}, ValueError, "silu"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, message):
    cells, weights, neighbours, _ = convolution_case(1, 3, [3, 4], 5, (2, 2), (6, 10), "nothing")
    arguments = {"cells": cells, "weights": weights, "counts": [3, 4], "neighbours": neighbours}
    with pytest.raises(error, match=message):
        ops.convolve_cells(**{**arguments, **change})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"slots": torch.full((1, 3, 2, 2), 5)}, ValueError, "one of 5 cells, got 5"),
        ({"slots": torch.zeros(2, 3, 2, 2, dtype=torch.int64)}, ValueError, "groups"),
        ({"slots": torch.zeros(1, 2, 2, 2, dtype=torch.int64)}, ValueError, "2 groups of 2"),
        ({"slots": torch.zeros(1, 3, 2, 2)}, ValueError, "int64"),
        ({"a": torch.zeros(1, 5)}, ValueError, "a must be"),
        ({"a": torch.zeros(1, 6).double()}, TypeError, "float64"),
        ({"size": (5, 4)}, ValueError, "4x4, got 5x4"),
        ({"size": (0, 4)}, ValueError, "got 0x4"),
    ],
)
def test_a_fusion_that_does_not_fit_is_refused(change, error, message):
    arguments = {
        "base": torch.zeros(1, 6, 2, 2),
        "cells": torch.zeros(5, 2, 2, 2),
        "slots": torch.zeros(1, 3, 2, 2, dtype=torch.int64),
        "a": torch.zeros(1, 6),
        "size": (4, 4),
    }
    with pytest.raises(error, match=message):
        ops.fuse_cells(**{**arguments, **change})


def test_weights_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="k 1 or 3"):
        ops.pack_cells(torch.zeros(1, 2, 3, 5, 5), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="bias must be"):
        ops.pack_cells(torch.zeros(1, 2, 3, 3, 3), torch.zeros(2))

"""What only the emulator can ask of the CUDA kernels: any order of their threads, any index."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from cuda_on_host import library
from hypothesis import given, settings
from torch import Tensor

from anchornet_ext import ops, reference
from anchornet_ext.ops import _cells_on_cuda
from anchornet_ext.reference.cells import ACTIVATIONS, activate, take_cells, with_halo

INT64 = torch.iinfo(torch.int64)
EXTREMES = (INT64.min, INT64.min + 1, -(2**31) - 1, -1, 2**31, 2**32 + 1, INT64.max - 1, INT64.max)
any_index = st.sampled_from(EXTREMES) | st.integers(-3, 12)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


# ---- the order of threads and blocks


def features(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(3, 70, 9, 11, generator=generator()).to(dtype)
    weight = torch.randn(5, 70, generator=generator(1)).to(dtype)
    return x, weight, torch.tensor([4, 0, 2])


def places(count: int, images: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    index = torch.randint(images, (count,), generator=generator(2))
    corners = [torch.randint(n, (count,), generator=generator(3)) for n in (rows, columns)]
    return index, torch.stack(corners, 1)


def scattered() -> tuple[Tensor, Tensor, Tensor]:
    index, corners = places(300, 5, 8, 9)
    return torch.randn(300, 3, 4, 5, generator=generator()), index, corners


def turn(classes: int, probabilities: bool) -> tuple[Any, ...]:
    running = torch.randn(60, classes, generator=generator())
    logits = torch.randn(40, classes, generator=generator(1))
    active = torch.randperm(60, generator=generator(2))[:40]
    thresholds = torch.rand(40, generator=generator(3))
    return running, logits, active, thresholds, 0.0, None, 2, None, 1.5, probabilities


def cells_of(count: int, *size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, *size, generator=generator()).to(dtype)


def neighbours(count: int, taps: int, cells: int) -> Tensor:
    return torch.randint(-1, cells, (count, taps), generator=generator(1))


def fusion(share: int, dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    """Two channel groups, three rows and two columns of cells, the last row not whole."""
    base = channels_last(torch.randn(2, 2 * share, 4, 3, generator=generator()).to(dtype))
    slots = torch.randint(-1, 5, (2, 2, 3, 2), generator=generator(1))
    a = torch.rand(2, 2 * share, generator=generator(2)).to(dtype)
    return base, cells_of(5, 3, 2, share, dtype=dtype), slots, a, 8, 4


CALLS: dict[str, tuple[str, Callable[[], tuple[Any, ...]]]] = {
    "map of rows": ("class_activation_map", features),
    "map of channels": (
        "class_activation_map",
        lambda: (channels_last(features()[0]), *features()[1:]),
    ),
    "map of vectors": (
        "class_activation_map",
        lambda: (channels_last(features()[0][:, :64]), features()[1][:, :64], features()[2]),
    ),
    "selection by a warp": (
        "select_patches",
        lambda: (torch.randn(4, 5, 6, generator=generator()).round(), 5, 20, 8, [0.2]),
    ),
    "selection by a block": (
        "select_patches",
        lambda: (torch.randn(4, 17, 17, generator=generator()).round(), 6, 95, 8, [0.2]),
    ),
    "selection by 32 warps": (
        "select_patches",
        lambda: (torch.randn(2, 65, 66, generator=generator()).round(), 3, 95, 8, [0.2]),
    ),
    "selection in global memory": (
        "select_patches",
        lambda: (torch.randn(2, 77, 78, generator=generator()).round(), 3, 95, 8, [0.2]),
    ),
    "gather": (
        "gather_patches",
        lambda: (
            torch.randn(5, 3, 20, 30, generator=generator()),
            *places(40, 5, 15, 25),
            5, 6, None, None, torch.float16, True,
        ),
    ),
    "resize": (
        "resize_images",
        lambda: (
            torch.rand(2, 3, 20, 30, generator=generator()),
            33, 11, None, None, torch.float32, False,
        ),
    ),
    "sum": ("scatter_patches", lambda: (*scattered(), 5, 12, 14)),
    "onto": (
        "scatter_patches_onto",
        lambda: (torch.zeros(5, 3, 12, 14), *scattered()),
    ),
    "cells with a border": (
        "gather_cells",
        lambda: (cells_of(9, 3, 2, 20), neighbours(70, 9, 9), 75),
    ),
    "single cells": ("gather_cells", lambda: (cells_of(9, 3, 2, 7), neighbours(70, 1, 9), 70)),
    "fusion": ("fuse_cells", lambda: fusion(8)),
    "turn by warps": ("exit_step", lambda: turn(37, False)),
    "turn by blocks": ("exit_step", lambda: turn(4099, True)),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
def test_results_do_not_depend_on_the_order_of_threads(case: str) -> None:
    name, arguments = CALLS[case]
    emulator = library.emulator()
    results = []
    try:
        for seed in range(4):
            emulator.seed(seed)
            given = arguments()
            result = library.kernel(name)(*given)
            results.append((given[0], *(result if isinstance(result, tuple) else (result,))))
    finally:
        emulator.seed(0)
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("case", CALLS)
def test_it_is_the_cuda_kernels_that_run(case: str) -> None:
    """One launch, but for scatter's (its bins come first) and exit_step's (it compacts after)."""
    name, arguments = CALLS[case]
    launches = 2 if "scatter" in name or name == "exit_step" else 1
    operator = getattr(torch.ops.anchornet_ext, name)

    def on_the_cpu() -> None:
        if torch._C._dispatch_has_kernel_for_dispatch_key(f"anchornet_ext::{name}", "CPU"):
            operator(*arguments())
        else:  # what only CUDA's operators are made of
            with pytest.raises(NotImplementedError, match=name):
                operator(*arguments())

    before = library.emulator().launches
    on_the_cpu()
    assert library.emulator().launches == before
    with library.in_place_of_cpu_kernels():
        operator(*arguments())
    assert library.emulator().launches == before + launches
    on_the_cpu()
    assert library.emulator().launches == before + launches


# ---- indices: a kernel cannot raise an error, so it moves what is outside to the inside


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_places_are_moved_into_the_images(data: st.DataObject) -> None:
    place = st.tuples(any_index, any_index, any_index)
    table = torch.tensor(data.draw(st.lists(place, min_size=1, max_size=5)))
    index, corners = table[:, 0], table[:, 1:]
    inside = torch.stack([index.clamp(0, 2), corners[:, 0].clamp(0, 4), corners[:, 1].clamp(0, 2)])
    good = (inside[0], inside[1:].t())
    images = torch.randn(3, 2, 7, 8, generator=generator())
    patches = library.kernel("gather_patches")(
        images, index, corners, 3, 6, None, None, torch.float32, False
    )
    assert torch.equal(patches, reference.gather_patches(images, *good, (3, 6), None, None, None))
    summed = library.kernel("scatter_patches")(patches, index, corners, 3, 7, 8)
    assert torch.equal(summed, reference.scatter_patches(patches, *good, images.shape))
    written = library.kernel("scatter_patches_onto")(images, patches, index, corners)
    assert torch.equal(written, reference.scatter_patches_onto(images, patches, *good))


@settings(deadline=None, max_examples=30)
@given(classes=st.lists(any_index, min_size=1, max_size=4), last=st.booleans())
def test_classes_are_moved_into_the_weights(classes: list[int], last: bool) -> None:
    x = torch.randn(len(classes), 8, 3, 3, generator=generator())
    weight = torch.randn(4, 8, generator=generator(1))
    index = torch.tensor(classes)
    result = library.kernel("class_activation_map")(channels_last(x) if last else x, weight, index)
    expected = reference.class_activation_map(x, weight, index.clamp(0, 3))
    torch.testing.assert_close(result, expected)


@settings(deadline=None, max_examples=40)
@given(active=st.lists(any_index, max_size=9, unique=True), classes=st.sampled_from([5, 4097]))
def test_rows_that_do_not_exist_are_skipped(active: list[int], classes: int) -> None:
    running = torch.randn(6, classes, generator=generator())
    logits = torch.randn(len(active), classes, generator=generator(1))
    exists = [0 <= row < 6 for row in active]
    good = torch.tensor(exists, dtype=torch.bool)
    rows = torch.tensor(active, dtype=torch.int64)
    expected_running = running.clone()
    want = reference.exit_step(expected_running, logits[good], rows[good], 0.1, 1, "logits", 1.0)
    arguments = (None, 0.1, None, 1, None, 1.0, False)
    confidence, prediction, left, count = library.kernel("exit_step")(
        running, logits, rows, *arguments
    )
    assert torch.equal(running, expected_running)
    torch.testing.assert_close(confidence[good], want[0])
    assert confidence[~good].isnan().all()
    assert torch.equal(prediction[good], want[1])
    assert (prediction[~good] == -1).all()
    stay = rows[good][~(want[0] > 0.1)]
    assert int(count) == len(stay)
    assert left.tolist() == stay.tolist() + [-1] * (len(active) - len(stay))


@settings(deadline=None, max_examples=40)
@given(
    index=st.lists(any_index, max_size=5),
    taps=st.sampled_from([1, 9]),
    channels=st.sampled_from([1, 2, 3, 4, 6, 16, 300]),
    size=st.tuples(st.integers(1, 4), st.integers(1, 9)),
    more=st.integers(0, 3),
    dtype=st.sampled_from([torch.float16, torch.float32, torch.float64]),
)
def test_places_without_a_cell_are_zero(
    index: list[int],
    taps: int,
    channels: int,
    size: tuple[int, int],
    more: int,
    dtype: torch.dtype,
) -> None:
    cells = cells_of(4, *size, channels, dtype=dtype)
    around = torch.tensor(index, dtype=torch.int64)[:, None].repeat(1, taps)
    if taps == 9 and index:
        around = around.roll(1, 0).where(torch.arange(9) % 2 == 0, around)
    result = library.kernel("gather_cells")(cells, around, len(index) + more)
    good = around.where((around >= 0) & (around < 4), -1)
    expected = with_halo(cells, good) if taps == 9 else take_cells(cells, good[:, 0])
    assert torch.equal(result[: len(index)], expected)
    assert len(result) == len(index) + more
    assert not result[len(index) :].any()


def test_cells_without_an_index_are_copied() -> None:
    cells = cells_of(5, 2, 3, 4)
    result = library.kernel("gather_cells")(cells, None, 8)
    assert torch.equal(result[:5], cells)
    assert not result[5:].any()


@settings(deadline=None, max_examples=40)
@given(
    index=st.none() | st.lists(any_index, min_size=6, max_size=6),
    channels=st.sampled_from([1, 3, 4, 8, 300]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    activation=st.integers(0, 2),
    in_place=st.booleans(),
)
def test_what_follows_a_convolution(
    index: list[int] | None, channels: int, dtype: torch.dtype, activation: int, in_place: bool
) -> None:
    convolved = 4 * cells_of(8, 2, 3, channels, dtype=dtype)
    bias = torch.randn(channels + 1, generator=generator(2)).to(dtype)
    add = torch.randn(6, 2, 3, channels, generator=generator(3)).to(dtype)
    numbers = None if index is None else torch.tensor(index)
    added = add.double()
    if numbers is not None:
        good = numbers.where((numbers >= 0) & (numbers < 6), -1)
        added = take_cells(added, good)
    sums = convolved[:6].double() + bias[:channels].double() + added
    expected = activate(sums, ACTIVATIONS[activation])
    out = convolved[:6] if in_place else torch.empty_like(convolved[:6])
    library.kernel("finish_cells")(convolved, bias, add, numbers, activation, out)
    torch.testing.assert_close(out, expected.to(dtype))


def test_a_convolution_of_cells_is_gathered_once_and_finished_once() -> None:
    weights = ops.pack_cells(cells_of(1, 16, 16, 3, 3), torch.ones(1, 16))
    single = ops.pack_cells(cells_of(1, 8, 16, 1, 1), torch.ones(1, 8))
    cells, around = cells_of(40, 2, 2, 16), neighbours(37, 9, 40)
    expected = ops.convolve_cells(cells, weights, [37], around, activation="relu")
    with library.in_place_of_cpu_kernels() as emulator:
        before = emulator.launches
        spatial = ops.convolve_cells(cells, weights, [37], around, activation="relu")
        assert emulator.launches - before == 2
        # The result has room behind it for the next convolution's batch.
        before = emulator.launches
        mixed = ops.convolve_cells(spatial, single, [37])
        assert emulator.launches - before == 1
    torch.testing.assert_close(spatial, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        mixed, ops.convolve_cells(expected, single, [37]), rtol=1e-4, atol=1e-4
    )


def test_cells_that_are_not_contiguous_are_refused() -> None:
    """The room behind them is found by their size, not by their strides."""
    single = ops.pack_cells(cells_of(1, 8, 16, 1, 1), torch.ones(1, 8))
    cells = cells_of(40, 2, 2, 16).transpose(1, 2)
    arguments = (None, single.weight, single.bias, [37], 8, None, None, 0)
    with library.in_place_of_cpu_kernels(), pytest.raises(RuntimeError, match="and contiguous"):
        torch.ops.anchornet_ext.convolve_cells(cells[:37], *arguments)


def test_batches_are_rounded_up_to_few_sizes() -> None:
    rooms = {n: _cells_on_cuda._room(n) for n in range(4097)}
    assert all(n <= room and 16 * room <= 17 * n for n, room in rooms.items())
    assert len({room for n, room in rooms.items() if 1024 < n <= 2048}) == 16


@settings(deadline=None, max_examples=30)
@given(
    slots=st.lists(any_index, min_size=24, max_size=24),
    share=st.sampled_from([1, 3, 4, 16]),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_slots_without_a_cell_keep_the_base(
    slots: list[int], share: int, dtype: torch.dtype
) -> None:
    base, cells, _, a, height, width = fusion(share, dtype)
    there = torch.tensor(slots).view(2, 2, 3, 2)
    result = library.kernel("fuse_cells")(base, cells, there, a, height, width)
    good = there.where((there >= 0) & (there < 5), -1)
    wide = (base.double(), cells.double(), good, a.double())
    expected = reference.fuse_cells(*wide, height, width)
    torch.testing.assert_close(result, expected.to(dtype), check_stride=False)


# ---- more than 2^31 elements: the memory is addresses only, because few blocks run


@pytest.fixture
def first_and_last_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    with library.emulator().only_blocks(2, 2):
        yield


@pytest.mark.usefixtures("first_and_last_blocks")
@pytest.mark.parametrize("last", [False, True])
def test_gathered_elements_beyond_32_bits(last: bool) -> None:
    """Channels of one value each, by way of a stride of zero."""
    ends = torch.tensor([[7, 9], [5, 3]], dtype=torch.uint8)  # (image, channel)
    images = ends[:, :, None, None].expand(2, 2, 1 << 15, 1 << 15)
    index = torch.tensor([0, 1])
    corners = torch.zeros(2, 2, dtype=torch.int64)
    patches = library.kernel("gather_patches")(
        images, index, corners, 1 << 15, (1 << 15), None, None, torch.uint8, last
    )
    assert patches.numel() == 1 << 32
    in_memory = patches.permute(0, 2, 3, 1).flatten() if last else patches.flatten()
    assert in_memory[:4].tolist() == ([7, 9, 7, 9] if last else [7] * 4)
    assert in_memory[-4:].tolist() == ([5, 3, 5, 3] if last else [3] * 4)


@pytest.mark.usefixtures("first_and_last_blocks")
def test_scattered_elements_beyond_32_bits() -> None:
    height, width = 1 << 16, (1 << 15) + 1
    patches = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float16).reshape(3, 1, 1, 1)
    corners = torch.tensor([[0, 1], [height - 1, width - 1], [height - 1, width - 1]])
    index = torch.zeros(3, dtype=torch.int64)
    summed = library.kernel("scatter_patches")(patches, index, corners, 1, height, width)
    assert summed.numel() > 1 << 31
    assert summed[0, 0, 0, :4].tolist() == [0, 1, 0, 0]
    assert summed[0, 0, -1, -4:].tolist() == [0, 0, 0, 5]
    base = torch.full((1, 1, 1, 1), 7, dtype=torch.uint8).expand(2, 1, height, width)
    written = library.kernel("scatter_patches_onto")(base, patches.byte(), index + 1, corners)
    assert written.numel() > 1 << 32
    assert written[0, 0, 0, :4].tolist() == [7] * 4
    assert written[1, 0, -1, -4:].tolist() == [7, 7, 7, 3]


@pytest.mark.usefixtures("first_and_last_blocks")
@pytest.mark.parametrize("last", [False, True])
def test_resized_pixels_beyond_32_bits(last: bool) -> None:
    height, width = 1 << 15, (1 << 15) + 1
    images = torch.arange(32.0).reshape(2, 1, 4, 4)
    result = library.kernel("resize_images")(images, height, width, None, None, torch.float16, last)
    assert result.numel() > 1 << 31
    assert result[0, 0, 0, 0].item() == 0
    assert result[1, 0, -1, -1].item() == 31


@pytest.mark.usefixtures("first_and_last_blocks")
@pytest.mark.parametrize("last", [False, True])
def test_high_tiles_are_resized_some_lines_at_a_time(last: bool) -> None:
    """Of 64 images of 16 channels a block makes eight rows; shared memory holds fewer lines."""
    images = torch.rand(64, 16, 40, 257, generator=generator())
    result = library.kernel("resize_images")(
        channels_last(images) if last else images, 64, 128, None, None, torch.float32, last
    )
    for image, rows in ((0, slice(0, 8)), (63, slice(56, 64))):
        channels = slice(0, 16) if last else slice(0, 4) if image == 0 else slice(12, 16)
        expected = reference.resize_images(images[image, None, channels], (64, 128), None, None)
        got = result[image, channels, rows]
        torch.testing.assert_close(got, expected[0, :, rows], rtol=0, atol=4e-6)


def test_sums_of_exit_step_beyond_32_bits() -> None:
    large = torch.empty((1 << 31) + 64, dtype=torch.float16)
    running = large.as_strided((2, 5), ((1 << 31) + 32, 1))
    running.copy_(torch.arange(10.0).reshape(2, 5))
    logits = torch.ones(2, 5, dtype=torch.float16)
    _, prediction, left, _ = library.kernel("exit_step")(
        running, logits, torch.tensor([1, 0]), None, 2.0, None, 1, None, 1.0, False
    )
    assert running.tolist() == torch.arange(1.0, 11).reshape(2, 5).tolist()
    assert prediction.tolist() == [4, 4]
    assert left.tolist() == [1, 0]


# ---- the rest


@pytest.mark.parametrize("channels", [6, 16, 17])
@pytest.mark.parametrize("width", [8, 61, 500])
@pytest.mark.parametrize("layout", ["planes", "pixels", "neither"])
def test_many_channels_are_resized(channels: int, width: int, layout: str) -> None:
    """By groups of planes, whole pixels, or tap by tap, see Line in resize_images.cu."""
    images = torch.rand(1, channels, 3, width, generator=generator())
    if layout == "neither":
        images = images.repeat_interleave(2, 3)[..., ::2]
    result = library.kernel("resize_images")(
        channels_last(images) if layout == "pixels" else images,
        2,
        21,
        None,
        None,
        torch.float32,
        True,
    )
    expected = reference.resize_images(images, (2, 21), None, None)
    torch.testing.assert_close(result, expected, rtol=0, atol=4e-6)


@pytest.mark.parametrize("side", [545, 559])
def test_tiles_that_begin_beyond_the_patch_write_nothing(side: int) -> None:
    """Equal tiles may be more than a patch has elements for: then no element is written twice."""
    images = torch.randn(1, 1, side, side, generator=generator())
    zero = torch.zeros(1, 2, dtype=torch.int64)
    patches = library.kernel("gather_patches")(
        images, zero[:, 0], zero, side, side, None, None, torch.float32, False
    )
    assert torch.equal(patches, images)


@pytest.mark.usefixtures("first_and_last_blocks")
def test_blocks_of_the_selection_take_several_images() -> None:
    """With the state in global memory there are 512 blocks, so that the first take two images."""
    cam = torch.randn(514, 63, 63, generator=generator(), dtype=torch.float64)
    index, top_left, qualified = library.kernel("select_patches")(cam, 2, 95, 8, [0.3])
    ran = torch.tensor([0, 1, 510, 511, 512, 513])
    expected = reference.select_patches(cam[ran], 2, 95, 8, 0.3)
    for got, want in zip((index, top_left, qualified), expected, strict=True):
        assert torch.equal(got[ran], want)

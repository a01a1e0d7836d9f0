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

from anchornet_ext import reference

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
    before = library.emulator().launches
    operator(*arguments())
    assert library.emulator().launches == before
    with library.in_place_of_cpu_kernels():
        operator(*arguments())
    assert library.emulator().launches == before + launches
    operator(*arguments())
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

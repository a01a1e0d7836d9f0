"""gather_patches against its specification, bit for bit, on every device there is."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from devices import on_cuda, on_devices, on_kernels
from hypothesis import given, settings
from patch_cases import (
    BAD_PLACES,
    CORNERS,
    FLOATS,
    FORMATS,
    INDEX,
    LAYOUTS,
    corners_with,
    is_in_format,
    lay_out,
    patch_places,
    random_images,
    sizes,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from anchornet_ext import ops, reference
from anchornet_ext.ops import _patch_places

RAW = torch.ops.anchornet_ext.gather_patches.default


def statistics(channels: int) -> tuple[Tensor, Tensor]:
    mean = torch.linspace(0.4, 0.6, channels, dtype=torch.float64)
    return mean, torch.linspace(0.2, 0.3, channels, dtype=torch.float64)


def check(
    images: Tensor,
    image_index: Tensor,
    top_left: Tensor,
    patch: tuple[int, int],
    normalise: bool,
    dtype: torch.dtype | None,
    memory_format: torch.memory_format,
    device: str = "cpu",
) -> None:
    mean, std = statistics(images.shape[1]) if normalise else (None, None)
    patches = ops.gather_patches(
        images.to(device) if device != images.device.type else images,
        top_left.to(device),
        patch,
        image_index.to(device),
        mean=mean,
        std=std,
        dtype=dtype,
        memory_format=memory_format,
    )
    expected = reference.gather_patches(
        images.cpu(), image_index, top_left, patch, mean, std, dtype
    )
    assert patches.dtype == expected.dtype
    assert patches.shape == expected.shape
    assert is_in_format(patches, memory_format)
    assert torch.equal(patches.cpu(), expected)


@on_kernels
@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_equals_the_reference(device: str, data: st.DataObject) -> None:
    n, c, h, w, ph, pw = data.draw(sizes())
    dtype = data.draw(st.sampled_from((torch.uint8, *FLOATS)))
    seed = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    images = random_images((n, c, h, w), dtype, seed).to(device)
    images = lay_out(images, data.draw(st.sampled_from(LAYOUTS)))
    image_index, top_left = data.draw(patch_places((n, h, w), (ph, pw)))
    check(
        images,
        image_index,
        top_left,
        (ph, pw),
        data.draw(st.booleans()),
        data.draw(st.sampled_from((None, *FLOATS))),
        data.draw(st.sampled_from(FORMATS)),
        device,
    )


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("memory_format", FORMATS)
@on_kernels
def test_long_rows_of_many_patches(
    layout: str, memory_format: torch.memory_format, device: str
) -> None:
    """More than the kernels take at once: of a row, and for one thread."""
    generator = torch.Generator().manual_seed(0)
    for channels, dtype in ((3, torch.uint8), (4, torch.float32)):
        images = random_images((2, channels, 40, 611), dtype, generator).to(device)
        images = lay_out(images, layout)
        image_index = torch.tensor([1, 0, 1])
        top_left = torch.tensor([[0, 10], [3, 0], [1, 7]])
        for normalise in (False, True):
            check(images, image_index, top_left, (37, 601), normalise, None, memory_format, device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("memory_format", FORMATS)
@on_kernels
def test_bytes_to_half_precision(
    layout: str, memory_format: torch.memory_format, dtype: torch.dtype, device: str
) -> None:
    """Several rows at a time, a part of a row at a time, and rows shorter than a vector."""
    generator = torch.Generator().manual_seed(0)
    images = lay_out(random_images((2, 3, 40, 1110), torch.uint8, generator).to(device), layout)
    image_index, top_left = torch.tensor([1, 0, 1]), torch.tensor([[0, 1], [3, 0], [1, 7]])
    for patch in ((37, 95), (5, 1101), (35, 21)):
        check(images, image_index, top_left, patch, True, dtype, memory_format, device)


@on_kernels
def test_every_byte_is_normalised_like_the_reference(device: str) -> None:
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    zero = torch.zeros(1, 2, dtype=torch.int64)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for dtype in FLOATS:
        patches = ops.gather_patches(
            images.to(device), zero.to(device), 16, mean=mean, std=std, dtype=dtype
        )
        expected = reference.gather_patches(images, zero[:, 0], zero, (16, 16), mean, std, dtype)
        assert torch.equal(patches.cpu(), expected)


@on_kernels
@settings(deadline=None, max_examples=40)
@given(
    mean=st.floats(-2, 2, width=32),
    std=st.floats(2.0**-20, 2.0**20, width=32) | st.floats(-4, -(2.0**-6), width=32),
    channels_last=st.booleans(),
)
def test_any_statistics_give_the_reference(
    device: str, mean: float, std: float, channels_last: bool
) -> None:
    """So many elements that kernels which divide in a quicker way for large inputs do it here."""
    images = torch.arange(256, dtype=torch.uint8).repeat(1, 2, 70, 1)
    zero = torch.zeros(1, 2, dtype=torch.int64)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    means, stds = torch.tensor([mean, 0.5]), torch.tensor([std, 0.25])
    patches = ops.gather_patches(
        images.to(device), zero.to(device), (70, 256), mean=means, std=stds
    )
    expected = reference.gather_patches(images, zero[:, 0], zero, (70, 256), means, stds)
    assert torch.equal(patches.cpu(), expected)


@on_kernels
def test_one_patch_by_hand(device: str) -> None:
    images = torch.arange(24, dtype=torch.float32, device=device).reshape(1, 1, 4, 6)
    patches = ops.gather_patches(images, torch.tensor([[1, 2]], device=device), (2, 3))
    assert patches.tolist() == [[[[8, 9, 10], [14, 15, 16]]]]


def test_copies_keep_nan_payloads_and_negative_zero() -> None:
    images = torch.tensor([0x7FC00001, -0x80000000, 0x7F800001], dtype=torch.int32)
    images = images.view(torch.float32).reshape(1, 1, 1, 3)
    for layout in ("contiguous", "every other column"):
        patches = ops.gather_patches(lay_out(images, layout), torch.tensor([[0, 0]]), (1, 3))
        assert patches.view(torch.int32).tolist() == images.view(torch.int32).tolist()


def test_defaults() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 9), dtype=torch.uint8)
    corners = torch.zeros(2, 2, dtype=torch.int64)
    assert ops.gather_patches(images, corners, 4).dtype == torch.uint8
    normalised = ops.gather_patches(images, corners, 4, mean=[0.5] * 3, std=[0.2] * 3)
    assert normalised.dtype == torch.float32
    half = ops.gather_patches(images.half(), corners, 4, mean=[0.5] * 3, std=[0.2] * 3)
    assert half.dtype == torch.float16
    assert is_in_format(ops.gather_patches(images, corners, 4), torch.contiguous_format)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert is_in_format(ops.gather_patches(channels_last, corners, 4), torch.channels_last)
    # One channel is in both formats; then contiguous, as torch says.
    grey = channels_last[:, :1].contiguous(memory_format=torch.channels_last)
    assert ops.gather_patches(grey, corners, 4).stride() == (16, 16, 4, 1)


def test_without_image_index_the_images_come_in_turn() -> None:
    images = torch.randn(3, 2, 9, 8)
    corners = torch.randint(0, 5, (3, 4, 2))
    index = torch.arange(3).repeat_interleave(4)
    expected = ops.gather_patches(images, corners.reshape(-1, 2), (5, 4), index)
    assert torch.equal(ops.gather_patches(images, corners, (5, 4)), expected)
    expected = ops.gather_patches(images, corners[:, 0], (5, 4), torch.arange(3))
    assert torch.equal(ops.gather_patches(images, corners[:, 0], (5, 4)), expected)
    none = ops.gather_patches(images, corners[:, :0], (5, 4))
    assert none.shape == (0, 2, 5, 4)


@on_kernels
@pytest.mark.parametrize("per_image", [1, 4])
def test_the_kernels_know_the_image_of_patches_in_turn(device: str, per_image: int) -> None:
    """An index of no entries, as the operators get it on CUDA."""
    images = torch.randn(3, 2, 9, 8, device=device)
    corners = torch.randint(0, 4, (3 * per_image, 2), device=device)
    index = torch.arange(3, device=device).repeat_interleave(per_image)
    settings = (5, 4, None, None, torch.float32, False)
    expected = RAW(images, index, corners, *settings)
    assert torch.equal(RAW(images, index[:0], corners, *settings), expected)


def test_on_cuda_no_index_is_written() -> None:
    with FakeTensorMode():
        corners = torch.zeros(3, 4, 2, dtype=torch.int64, device="cuda")
        index, top_left = _patch_places.flatten_places(corners, None, 3, corners.device)
        assert (index.shape, index.device) == ((0,), corners.device)
        assert top_left.shape == (12, 2)


def test_places_are_checked_without_an_index() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    corners = torch.zeros(6, 2, dtype=torch.int64)
    _patch_places.check_places(none, corners, (5, 4), (3, 9, 8))
    corners[4, 0] = 5
    with pytest.raises(ValueError, match="patch 4 at"):
        _patch_places.check_places(none, corners, (5, 4), (3, 9, 8))


@on_kernels
@pytest.mark.parametrize("memory_format", FORMATS)
def test_nothing_to_gather(device: str, memory_format: torch.memory_format) -> None:
    corners = torch.zeros(0, 2, dtype=torch.int64, device=device)
    for n, c in ((2, 3), (0, 3), (2, 0)):
        images = torch.zeros(n, c, 8, 9, device=device)
        patches = ops.gather_patches(
            images, corners, (3, 2), corners[:, 0], memory_format=memory_format
        )
        assert patches.shape == (0, c, 3, 2)
        assert is_in_format(patches, memory_format)


@on_kernels
def test_offsets_beyond_32_bits(device: str) -> None:
    """The images take 4 GiB of addresses; on the CPU only the few pages that are written exist."""
    images = torch.empty(2, 1, 1 << 15, 1 << 16, dtype=torch.uint8, device=device)
    corner = torch.tensor([(1 << 15) - 3, (1 << 16) - 5], device=device)
    images[1, 0, -3:, -5:] = torch.arange(15, dtype=torch.uint8, device=device).reshape(3, 5)
    one = torch.ones(1, dtype=torch.int64, device=device)
    patches = ops.gather_patches(images, corner[None], (3, 5), one)
    assert patches.flatten().tolist() == list(range(15))


# ---- bad input: first the function, then the operator under it ----

IMAGES = torch.zeros(2, 3, 8, 9)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "images type": ({"images": [1]}, TypeError, "images must be a tensor, got list"),
    "images dtype": ({"images": IMAGES.int()}, TypeError, "torch.int32"),
    "images shape": ({"images": IMAGES[0]}, ValueError, r"\(3, 8, 9\)"),
    "top_left type": ({"top_left": [[0, 0]]}, TypeError, "got list"),
    "top_left dtype": ({"top_left": CORNERS.float()}, TypeError, "torch.float32"),
    "top_left length": ({"top_left": CORNERS[:2]}, ValueError, r"\(2, 2\)"),
    "no index": ({"image_index": None}, ValueError, r"N = 2 images, got \(3, 2\)"),
    **BAD_PLACES,
    "patch zero": ({"patch_size": (0, 4)}, ValueError, r"\(0, 4\)"),
    "patch high": ({"patch_size": (9, 4)}, ValueError, r"\(9, 4\)"),
    "patch wide": ({"patch_size": (3, 10)}, ValueError, r"\(3, 10\)"),
    "patch triple": ({"patch_size": (1, 2, 3)}, ValueError, r"\(1, 2, 3\)"),
    "mean alone": ({"mean": [0.0] * 3}, ValueError, "together"),
    "mean length": ({"mean": [0.0] * 2, "std": [1.0] * 3}, ValueError, r"mean .*\(2,\)"),
    "std length": ({"mean": [0.0] * 3, "std": [1.0] * 4}, ValueError, r"std .*\(4,\)"),
    "std zero": ({"mean": [0.0] * 3, "std": [1, 0.0, 1]}, ValueError, r"\[1.0, 0.0, 1.0\]"),
    "std dtype": (
        {"mean": [0.0] * 3, "std": torch.ones(3, dtype=torch.int64)},
        TypeError,
        "torch.int64",
    ),
    "mean gradient": (
        {"mean": torch.zeros(3, requires_grad=True), "std": [1.0] * 3},
        ValueError,
        "mean .* gradient",
    ),
    "dtype": ({"dtype": torch.int32}, TypeError, "torch.int32"),
    "dtype of floats": ({"dtype": torch.uint8}, TypeError, "torch.uint8"),
    "memory format": ({"memory_format": torch.channels_last_3d}, ValueError, "3d"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    changed, error, match = BAD[case]
    arguments: dict[str, Any] = {
        "images": IMAGES,
        "top_left": CORNERS,
        "patch_size": (3, 4),
        "image_index": INDEX,
    }
    ops.gather_patches(**arguments)  # good as it is
    with pytest.raises(error, match=match):
        ops.gather_patches(**{**arguments, **changed})


def test_normalised_bytes_cannot_stay_bytes() -> None:
    with pytest.raises(TypeError, match="normalised"):
        ops.gather_patches(
            IMAGES.byte(), CORNERS, 3, INDEX, mean=[0.0] * 3, std=[1.0] * 3, dtype=torch.uint8
        )


RAW_BAD: dict[str, tuple[dict[int, Any], str]] = {
    "images dtype": ({0: IMAGES.int()}, "got Int"),
    "images shape": ({0: IMAGES[0]}, r"\(3, 8, 9\)"),
    "index dtype": ({1: INDEX.int()}, "image_index must be int64, got Int"),
    "index shape": ({1: INDEX[None]}, r"\(1, 3\)"),
    "index length": ({1: INDEX[:2]}, "M = 2"),
    "no index": ({1: INDEX[:0]}, "as many patches of each of the 2 images, got 3"),
    "index high": ({1: torch.tensor([0, 2, 0])}, "patch 1 has image_index 2"),
    "index low": ({1: torch.tensor([0, 0, -1])}, "patch 2 has image_index -1"),
    "top_left dtype": ({2: CORNERS.float()}, "top_left must be int64, got Float"),
    "top_left shape": ({2: CORNERS[:, :1]}, r"\(3, 1\)"),
    "row high": (
        {2: corners_with(2, 6, 0)},
        r"patch 2 at \(row, column\) = \(6, 0\) with size \(3, 4\)",
    ),
    "row wraps": ({2: corners_with(0, 2**63 - 1, 0)}, "patch 0"),
    "column low": ({2: corners_with(0, 0, -1)}, "patch 0"),
    "patch zero": ({3: 0}, "got 0 x 4"),
    "patch wide": ({4: 10}, "got 3 x 10"),
    "mean alone": ({5: torch.zeros(3)}, "together"),
    "mean shape": ({5: torch.zeros(2), 6: torch.ones(3)}, r"mean must be \(C\).*\(2\)"),
    "std dtype": ({5: torch.zeros(3), 6: torch.ones(3).int()}, "std .* got Int"),
    "std zero": ({5: torch.zeros(3), 6: torch.tensor([1.0, 1, 0])}, "channel 2"),
    "dtype": ({7: torch.int32}, "into Int"),
    "no image": ({0: IMAGES[:0]}, "3 patches but no image"),
}


@pytest.mark.parametrize("case", RAW_BAD)
def test_operator_refuses_bad_input(case: str) -> None:
    changed, match = RAW_BAD[case]
    arguments = [IMAGES, INDEX, CORNERS, 3, 4, None, None, torch.float32, False]
    RAW(*arguments)  # good as it is
    for position, value in changed.items():
        arguments[position] = value
    with pytest.raises(RuntimeError, match=match):
        RAW(*arguments)


def test_index_on_another_device_is_refused() -> None:
    with pytest.raises(ValueError, match="image_index is on meta"):
        ops.gather_patches(IMAGES, CORNERS, 3, INDEX.to("meta"))


@on_cuda
def test_cuda_moves_patches_inside_unless_asked_to_validate(device: str) -> None:
    images = torch.arange(2 * 1 * 5 * 6.0).reshape(2, 1, 5, 6).to(device)
    corners = torch.tensor([[-3, 2], [9, 2**40], [1, 1]], device=device)
    index = torch.tensor([0, 1, 7], device=device)
    with pytest.raises(ValueError, match=r"patch 0 .*\(-3, 2\)"):
        ops.gather_patches(images, corners, (2, 3), index, validate=True)
    inside = torch.tensor([[0, 2], [3, 3], [1, 1]], device=device)
    expected = ops.gather_patches(images, inside, (2, 3), index.clamp(max=1), validate=True)
    assert torch.equal(ops.gather_patches(images, corners, (2, 3), index), expected)


# ---- gradients ----


@on_devices
@pytest.mark.parametrize("normalise", [False, True])
def test_gradients(device: str, normalise: bool) -> None:
    mean, std = statistics(2) if normalise else (None, None)
    images = torch.randn(2, 2, 4, 5, dtype=torch.float64, device=device, requires_grad=True)
    corners = torch.tensor([[0, 1], [2, 2], [1, 2]], device=device)  # the last two overlap
    index = torch.tensor([1, 0, 0], device=device)

    def gather(x: Tensor) -> Tensor:
        return ops.gather_patches(x, corners, (2, 3), index, mean=mean, std=std)

    assert torch.autograd.gradcheck(gather, (images,))
    assert torch.autograd.gradgradcheck(gather, (images,))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("to", FLOATS)
def test_gradient_has_the_images_dtype(dtype: torch.dtype, to: torch.dtype) -> None:
    images = torch.randn(1, 2, 4, 4).to(dtype).requires_grad_()
    corners = torch.zeros(3, 2, dtype=torch.int64)
    index = torch.zeros(3, dtype=torch.int64)
    patches = ops.gather_patches(
        images, corners, 2, index, mean=[0.0, 0.0], std=[0.5, 2.0], dtype=to
    )
    (gradient,) = torch.autograd.grad(patches.sum(), images)
    assert gradient.dtype == dtype
    assert gradient[0, :, 0, 0].tolist() == [6, 1.5]
    assert gradient[0, :, 2:, 2:].abs().sum() == 0


def test_bytes_have_no_gradient() -> None:
    patches = ops.gather_patches(
        torch.zeros(1, 1, 3, 3, dtype=torch.uint8),
        torch.tensor([[0, 0]]),
        2,
        dtype=torch.float32,
    )
    assert not patches.requires_grad


# ---- what surrounds the kernel ----


@on_devices
def test_opcheck(device: str) -> None:
    corners, index = CORNERS.to(device), INDEX.to(device)
    mean, std = (x.float().to(device) for x in statistics(3))
    images = torch.randn(2, 3, 8, 9, device=device)
    for x, statistic, dtype, channels_last in (
        (images.requires_grad_(), (None, None), torch.float32, False),
        ((images * 9).detach().byte(), (mean, std), torch.float16, True),
    ):
        torch.library.opcheck(
            RAW, (x, index, corners, 3, 4, *statistic, dtype, channels_last), raise_exception=True
        )


@on_devices
@pytest.mark.parametrize("channels_last", [False, True])
def test_compiles_without_graph_breaks(device: str, channels_last: bool) -> None:
    def gather(images: Tensor, corners: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        return ops.gather_patches(images, corners, 3, mean=mean, std=std) * 2

    compiled = torch.compile(gather, fullgraph=True, dynamic=True, backend="aot_eager")
    mean, std = (x.float().to(device) for x in statistics(3))
    for n, k, h, w in ((2, 4, 9, 8), (3, 2, 7, 11)):
        images = torch.randn(n, 3, h, w, device=device)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        corners = torch.randint(0, 4, (n, k, 2), device=device)
        result, expected = (f(images, corners, mean, std) for f in (compiled, gather))
        assert torch.equal(result, expected)
        assert result.stride() == expected.stride()


@pytest.mark.parametrize("dtype", FLOATS)
def test_autocast_leaves_the_dtype(dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        patches = ops.gather_patches(IMAGES.to(dtype), CORNERS, 3, INDEX)
    assert patches.dtype == dtype

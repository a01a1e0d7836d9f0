"""scatter_patches and scatter_patches_onto against their specification, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
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

from anchornet_ext import ops, reference
from anchornet_ext._machine import using_threads

RAW_SUM = torch.ops.anchornet_ext.scatter_patches.default
RAW_ONTO = torch.ops.anchornet_ext.scatter_patches_onto.default


def follows_the_format_of(result: Tensor, source: Tensor) -> bool:
    last = torch.channels_last
    channels_last = not source.is_contiguous() and source.is_contiguous(memory_format=last)
    return is_in_format(result, last if channels_last else torch.contiguous_format)


@on_kernels
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_sum_equals_the_reference(device: str, data: st.DataObject) -> None:
    n, c, h, w, ph, pw = data.draw(sizes())
    image_index, top_left = data.draw(patch_places((n, h, w), (ph, pw)))
    dtype = data.draw(st.sampled_from(FLOATS))
    seed = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    patches = random_images((len(image_index), c, ph, pw), dtype, seed).to(device)
    patches = lay_out(patches, data.draw(st.sampled_from(LAYOUTS)))
    summed = ops.scatter_patches(patches, top_left.to(device), (n, c, h, w), image_index.to(device))
    expected = reference.scatter_patches(patches.cpu(), image_index, top_left, (n, c, h, w))
    assert summed.dtype == dtype
    assert follows_the_format_of(summed, patches)
    assert torch.equal(summed.cpu(), expected)


@on_kernels
@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_onto_equals_the_reference(device: str, data: st.DataObject) -> None:
    n, c, h, w, ph, pw = data.draw(sizes())
    image_index, top_left = data.draw(patch_places((n, h, w), (ph, pw)))
    dtype = data.draw(st.sampled_from((torch.uint8, *FLOATS)))
    seed = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    base = random_images((n, c, h, w), dtype, seed).to(device)
    base = lay_out(base, data.draw(st.sampled_from(LAYOUTS)))
    patches = random_images((len(image_index), c, ph, pw), dtype, seed).to(device)
    patches = lay_out(patches, data.draw(st.sampled_from(LAYOUTS)))
    before = base.clone()
    written = ops.scatter_patches_onto(base, patches, top_left.to(device), image_index.to(device))
    expected = reference.scatter_patches_onto(base.cpu(), patches.cpu(), image_index, top_left)
    assert written.dtype == dtype
    assert follows_the_format_of(written, base)
    assert torch.equal(written.cpu(), expected)
    assert torch.equal(base, before)


@on_kernels
def test_overlap_by_hand(device: str) -> None:
    patches = torch.tensor([[[[1.0, 2]]], [[[10.0, 20]]]], device=device)
    corners = torch.tensor([[0, 0], [0, 1]], device=device)
    image = torch.zeros(2, dtype=torch.int64, device=device)
    summed = ops.scatter_patches(patches, corners, (1, 1, 1, 4), image)
    assert summed.tolist() == [[[[1, 12, 20, 0]]]]
    base = torch.full((1, 1, 1, 4), 7.0, device=device)
    written = ops.scatter_patches_onto(base, patches, corners, image)
    assert written.tolist() == [[[[1, 10, 20, 7]]]]


@on_kernels
@pytest.mark.parametrize("memory_format", FORMATS)
def test_cutting_into_tiles_and_putting_back_is_the_identity(
    device: str, memory_format: torch.memory_format
) -> None:
    images = torch.randn(3, 4, 12, 20, device=device).contiguous(memory_format=memory_format)
    rows, columns = torch.arange(0, 12, 4), torch.arange(0, 20, 5)
    corners = torch.cartesian_prod(rows, columns).to(device).expand(3, -1, 2)
    tiles = ops.gather_patches(images, corners, (4, 5))
    assert torch.equal(ops.scatter_patches(tiles, corners, images.shape), images)
    empty = torch.full_like(images, float("nan"))
    assert torch.equal(ops.scatter_patches_onto(empty, tiles, corners), images)


@on_kernels
def test_what_was_gathered_lies_where_it_was(device: str) -> None:
    """Overlaps or not: writing patches back over their own image changes nothing."""
    images = torch.randn(4, 3, 30, 41, device=device)
    corners = torch.randint(0, 20, (4, 6, 2), device=device)
    patches = ops.gather_patches(images, corners, (10, 21))
    assert torch.equal(ops.scatter_patches_onto(images, patches, corners), images)


@on_kernels
def test_sum_is_the_adjoint_of_gather(device: str) -> None:
    images = torch.randn(3, 2, 17, 15, dtype=torch.float64, device=device)
    corners = torch.randint(0, 9, (3, 5, 2), device=device)
    patches = torch.randn(15, 2, 9, 7, dtype=torch.float64, device=device)
    left = (ops.gather_patches(images, corners, (9, 7)) * patches).sum()
    right = (images * ops.scatter_patches(patches, corners, images.shape)).sum()
    torch.testing.assert_close(left, right)


@on_kernels
def test_thousands_of_patches_in_shuffled_order(device: str) -> None:
    """The order of the patches is kept within each image, however they are mixed."""
    generator = torch.Generator().manual_seed(0)
    image_index = torch.randint(0, 70, (3001,), generator=generator)
    image_index[image_index == 5] = 69  # one image without a patch, one with more
    top_left = torch.randint(0, 8, (3001, 2), generator=generator)
    patches = torch.randn(3001, 1, 3, 5, generator=generator)
    expected = reference.scatter_patches(patches, image_index, top_left, (70, 1, 10, 12))
    arguments = [x.to(device) for x in (patches, top_left, image_index)]
    summed = ops.scatter_patches(arguments[0], arguments[1], (70, 1, 10, 12), arguments[2])
    assert torch.equal(summed.cpu(), expected)
    base = torch.zeros(70, 1, 10, 12)
    expected = reference.scatter_patches_onto(base, patches, image_index, top_left)
    written = ops.scatter_patches_onto(base.to(device), *arguments)
    assert torch.equal(written.cpu(), expected)


def test_result_does_not_depend_on_threads() -> None:
    patches = torch.randn(64, 3, 40, 50)
    corners = torch.randint(0, 40, (4, 16, 2))
    results = []
    for count in (1, 2):
        with using_threads(count):
            results.append(ops.scatter_patches(patches, corners, (4, 3, 80, 90)))
    assert torch.equal(*results)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_summed_in_float32(dtype: torch.dtype) -> None:
    """2048 + 1 + 1 + ... stands still in float16, and sooner in bfloat16."""
    patches = torch.ones(257, 1, 1, 1, dtype=dtype)
    patches[0] = 2048
    zeros = torch.zeros(257, 2, dtype=torch.int64)
    summed = ops.scatter_patches(patches, zeros, (1, 1, 1, 1), zeros[:, 0])
    assert summed.item() == torch.tensor(2304.0).to(dtype).item()


@on_kernels
@pytest.mark.parametrize("per_image", [1, 4])
def test_the_kernels_know_the_image_of_patches_in_turn(device: str, per_image: int) -> None:
    """An index of no entries, as the operators get it on CUDA."""
    patches = torch.randn(3 * per_image, 3, 5, 4, device=device)
    corners = torch.randint(0, 4, (3 * per_image, 2), device=device)
    index = torch.arange(3, device=device).repeat_interleave(per_image)
    summed = RAW_SUM(patches, index, corners, 3, 9, 7)
    assert torch.equal(RAW_SUM(patches, index[:0], corners, 3, 9, 7), summed)
    base = torch.randn(3, 3, 9, 7, device=device)
    written = RAW_ONTO(base, patches, index, corners)
    assert torch.equal(RAW_ONTO(base, patches, index[:0], corners), written)


@on_kernels
def test_nothing_to_scatter(device: str) -> None:
    corners = torch.zeros(0, 2, dtype=torch.int64, device=device)
    for n, c in ((2, 3), (0, 3), (2, 0)):
        patches = torch.zeros(0, c, 4, 3, device=device)
        summed = ops.scatter_patches(patches, corners, (n, c, 8, 9), corners[:, 0])
        assert torch.equal(summed, torch.zeros(n, c, 8, 9, device=device))
        base = torch.randn(n, c, 8, 9, device=device)
        written = ops.scatter_patches_onto(base, patches, corners, corners[:, 0])
        assert torch.equal(written, base)
        assert written is not base


@on_kernels
def test_offsets_beyond_32_bits(device: str) -> None:
    """The patches take 4 GiB of addresses; on the CPU only the pages that are read exist."""
    large = torch.empty(1 << 32, dtype=torch.uint8, device=device)
    patches = large.as_strided((2, 1, 2, 3), ((1 << 32) - 16, 1, 3, 1))
    patches.copy_(torch.arange(12, dtype=torch.uint8, device=device).reshape(2, 1, 2, 3))
    corners = torch.tensor([[0, 0], [1, 2]], device=device)
    index = torch.tensor([0, 0], device=device)
    base = torch.full((1, 1, 3, 5), 99, dtype=torch.uint8, device=device)
    written = ops.scatter_patches_onto(base, patches, corners, index)
    assert written.tolist() == [[[[0, 1, 2, 99, 99], [3, 4, 6, 7, 8], [99, 99, 9, 10, 11]]]]


# ---- bad input: first the functions, then the operators under them ----

PATCHES = torch.zeros(3, 2, 3, 4)
BASE = torch.zeros(2, 2, 8, 9)


def scatter(**changed: Any) -> Tensor:
    arguments = {"size": (2, 2, 8, 9), **GOOD, **changed}
    arguments.pop("base", None)
    return ops.scatter_patches(**arguments)


def scatter_onto(**changed: Any) -> Tensor:
    arguments = {"base": BASE, **GOOD, **changed}
    return ops.scatter_patches_onto(**arguments)


GOOD: dict[str, Any] = {"patches": PATCHES, "top_left": CORNERS, "image_index": INDEX}


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "patches type": ({"patches": [1]}, TypeError, "patches must be a tensor, got list"),
    "patches dtype": ({"patches": PATCHES.int()}, TypeError, "torch.int32"),
    "patches shape": ({"patches": PATCHES[0]}, ValueError, r"\(2, 3, 4\)"),
    "patches channels": ({"patches": PATCHES[:, :1]}, ValueError, "2 channels, .* have 1"),
    "patches number": ({"patches": PATCHES[:2]}, ValueError, "2 patches but 3 places"),
    "patches size": ({"patches": torch.zeros(3, 2, 9, 4)}, ValueError, r"\(9, 4\)"),
    "patches empty": ({"patches": torch.zeros(3, 2, 0, 4)}, ValueError, r"\(0, 4\)"),
    "top_left dtype": ({"top_left": CORNERS.int()}, TypeError, "torch.int32"),
    **BAD_PLACES,
}


@pytest.mark.parametrize("call", [scatter, scatter_onto])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str, call: Callable[..., Tensor]) -> None:
    changed, error, match = BAD[case]
    call()  # good as it is
    with pytest.raises(error, match=match):
        call(**changed)


@pytest.mark.parametrize(
    ("call", "changed", "error", "match"),
    [
        (scatter, {"patches": PATCHES.byte()}, TypeError, "torch.uint8"),
        (scatter, {"size": (2, 2, 8)}, ValueError, r"\(2, 2, 8\)"),
        (scatter, {"size": (2, 3, 8, 9)}, ValueError, "3 channels"),
        (scatter, {"size": (-1, 2, 8, 9)}, ValueError, "-1"),
        (scatter, {"size": (2, 2, 0, 9)}, ValueError, r"\(2, 2, 0, 9\)"),
        (scatter_onto, {"base": 3}, TypeError, "base must be a tensor, got int"),
        (scatter_onto, {"base": BASE.int()}, TypeError, "torch.int32"),
        (scatter_onto, {"base": BASE.double()}, TypeError, "torch.float64"),
        (scatter_onto, {"base": BASE[0]}, ValueError, r"\(2, 8, 9\)"),
        (scatter_onto, {"base": BASE.to("meta")}, ValueError, "meta"),
    ],
)
def test_bad_target_is_named(
    call: Callable[..., Tensor], changed: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        call(**changed)


RAW_BAD: dict[str, tuple[dict[str, Any], str]] = {
    "patches dtype": ({"patches": PATCHES.int()}, "Int"),
    "patches shape": ({"patches": PATCHES[0]}, r"\(2, 3, 4\)"),
    "patches number": ({"patches": PATCHES[:2]}, "2 patches but image_index has 3"),
    "patches size": ({"patches": torch.zeros(3, 2, 9, 4)}, "got 9 x 4"),
    "patches empty": ({"patches": torch.zeros(3, 2, 3, 0)}, "got 3 x 0"),
    "index dtype": ({"image_index": INDEX.int()}, "image_index must be int64, got Int"),
    "index shape": ({"image_index": INDEX[None]}, r"\(1, 3\)"),
    "index high": ({"image_index": torch.tensor([0, 2, 0])}, "patch 1 has image_index 2"),
    "index low": ({"image_index": torch.tensor([0, 0, -1])}, "patch 2 has image_index -1"),
    "top_left dtype": ({"top_left": CORNERS.float()}, "top_left must be int64, got Float"),
    "top_left shape": ({"top_left": CORNERS[:2]}, r"\(2, 2\)"),
    "row high": ({"top_left": corners_with(2, 6, 0)}, r"patch 2 at \(row, column\) = \(6, 0\)"),
    "row wraps": ({"top_left": corners_with(0, 2**63 - 1, 0)}, "patch 0"),
    "column low": ({"top_left": corners_with(0, 0, -1)}, "patch 0"),
}


@pytest.mark.parametrize("case", RAW_BAD)
def test_operators_refuse_bad_input(case: str) -> None:
    changed, match = RAW_BAD[case]
    arguments = {**GOOD, **changed}
    with pytest.raises(RuntimeError, match=match):
        RAW_SUM(**arguments, num_images=2, height=8, width=9)
    with pytest.raises(RuntimeError, match=match):
        RAW_ONTO(base=BASE, **arguments)


def test_operators_refuse_a_bad_target() -> None:
    for n, h, w in ((-1, 8, 9), (2, 0, 9), (2, 8, 0)):
        with pytest.raises(RuntimeError, match="at least one pixel"):
            RAW_SUM(**GOOD, num_images=n, height=h, width=w)
    with pytest.raises(RuntimeError, match="3 patches but no image"):
        RAW_SUM(**GOOD, num_images=0, height=8, width=9)
    for base, match in (
        (BASE.int(), "got Int"),
        (BASE.half(), "base is Half but patches are Float"),
        (BASE[0], r"\(2, 8, 9\)"),
        (BASE[:, :1], "base has 1 channels but patches have 2"),
    ):
        with pytest.raises(RuntimeError, match=match):
            RAW_ONTO(base=base, **GOOD)


@on_cuda
def test_cuda_moves_patches_inside_unless_asked_to_validate(device: str) -> None:
    patches = torch.arange(3 * 6.0, device=device).reshape(3, 1, 2, 3)
    corners = torch.tensor([[-3, 2], [9, 2**40], [1, 1]], device=device)
    index = torch.tensor([0, -1, 7], device=device)
    size = (2, 1, 5, 6)
    inside = torch.tensor([[0, 2], [3, 3], [1, 1]], device=device)
    clamped = index.clamp(0, 1)
    with pytest.raises(ValueError, match=r"patch 0 .*\(-3, 2\)"):
        ops.scatter_patches(patches, corners, size, index, validate=True)
    expected = ops.scatter_patches(patches, inside, size, clamped, validate=True)
    assert torch.equal(ops.scatter_patches(patches, corners, size, index), expected)
    base = torch.randn(size, device=device)
    with pytest.raises(ValueError, match=r"patch 0 .*\(-3, 2\)"):
        ops.scatter_patches_onto(base, patches, corners, index, validate=True)
    expected = ops.scatter_patches_onto(base, patches, inside, clamped)
    assert torch.equal(ops.scatter_patches_onto(base, patches, corners, index), expected)


# ---- gradients ----


@on_devices
def test_gradients(device: str) -> None:
    corners = torch.tensor([[0, 1], [2, 2], [1, 2]], device=device)  # the last two overlap
    index = torch.tensor([1, 0, 0], device=device)
    patches = torch.randn(3, 2, 2, 3, dtype=torch.float64, device=device, requires_grad=True)
    base = torch.randn(2, 2, 4, 5, dtype=torch.float64, device=device, requires_grad=True)

    def summed(x: Tensor) -> Tensor:
        return ops.scatter_patches(x, corners, (2, 2, 4, 5), index)

    def written(under: Tensor, over: Tensor) -> Tensor:
        return ops.scatter_patches_onto(under, over, corners, index)

    assert torch.autograd.gradcheck(summed, (patches,))
    assert torch.autograd.gradgradcheck(summed, (patches,))
    assert torch.autograd.gradcheck(written, (base, patches))
    assert torch.autograd.gradgradcheck(written, (base, patches))


@pytest.mark.parametrize("dtype", FLOATS)
def test_gradient_of_onto_belongs_to_what_is_on_top(dtype: torch.dtype) -> None:
    base = torch.zeros(1, 1, 1, 5, dtype=dtype, requires_grad=True)
    patches = torch.zeros(2, 1, 1, 2, dtype=dtype, requires_grad=True)
    zeros = torch.zeros(2, dtype=torch.int64)
    written = ops.scatter_patches_onto(base, patches, torch.tensor([[0, 1], [0, 2]]), zeros)
    written.backward(torch.tensor([[[[1, 2, 3, 4, 5]]]], dtype=dtype))
    assert base.grad is not None
    assert patches.grad is not None
    assert base.grad.flatten().tolist() == [1, 0, 0, 0, 5]
    assert patches.grad.flatten().tolist() == [2, 0, 3, 4]
    assert base.grad.dtype == patches.grad.dtype == dtype


# ---- what surrounds the kernels ----


@on_devices
def test_opcheck(device: str) -> None:
    corners, index = CORNERS.to(device), INDEX.to(device)
    patches = PATCHES.to(device, copy=True).requires_grad_()
    torch.library.opcheck(RAW_SUM, (patches, index, corners, 2, 8, 9))
    base = lay_out(BASE.to(device), "channels_last").requires_grad_()
    torch.library.opcheck(RAW_ONTO, (base, patches, index, corners))


@on_devices
@pytest.mark.parametrize("memory_format", FORMATS)
def test_compiles_without_graph_breaks(device: str, memory_format: torch.memory_format) -> None:
    def there_and_back(images: Tensor, corners: Tensor) -> tuple[Tensor, Tensor]:
        patches = ops.gather_patches(images, corners, 3) * 2
        summed = ops.scatter_patches(patches, corners, images.shape)
        return summed, ops.scatter_patches_onto(images, patches, corners)

    compiled = torch.compile(there_and_back, fullgraph=True, dynamic=True, backend="aot_eager")
    for n, k, h, w in ((2, 4, 9, 8), (3, 2, 7, 11)):
        images = torch.randn(n, 3, h, w, device=device).contiguous(memory_format=memory_format)
        corners = torch.randint(0, 4, (n, k, 2), device=device)
        for result, expected in zip(
            compiled(images, corners), there_and_back(images, corners), strict=True
        ):
            assert torch.equal(result, expected)
            assert result.stride() == expected.stride()


@pytest.mark.parametrize("dtype", FLOATS)
def test_autocast_leaves_the_dtype(dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert scatter(patches=PATCHES.to(dtype)).dtype == dtype
        assert scatter_onto(base=BASE.to(dtype), patches=PATCHES.to(dtype)).dtype == dtype

"""select_patches against its specification, bit for bit, on each device."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from devices import needs_cuda, on_devices, on_kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anchornet_ext import ops, reference
from anchornet_ext._machine import using_threads
from anchornet_ext.reference.select_patches import iou

RAW = torch.ops.anchornet_ext.select_patches
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# Few values, so that ties are the rule, and the ones with an order of their own.
VALUES = [0.0, -0.0, 1.0, -1.0, 2.5, math.inf, -math.inf, math.nan]


def check(cam: Tensor, *arguments) -> ops.PatchSelection:
    result = ops.select_patches(cam, *arguments)
    expected = reference.select_patches(cam, *arguments)
    for name, got, want in zip(result._fields, result, expected, strict=True):
        assert got.dtype == torch.int64
        assert got.device == cam.device
        assert torch.equal(got, want), f"{name}: {got.tolist()} instead of {want.tolist()}"
    return result


def cam_of(rows, device="cpu", dtype=torch.float32) -> Tensor:
    return torch.tensor([rows], dtype=dtype, device=device)


# ---- properties


@st.composite
def cams(draw, min_batch=0, device="cpu"):
    shape = (draw(st.integers(min_batch, 3)), draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    dtype = draw(st.sampled_from(DTYPES))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    if draw(st.booleans()):
        values = torch.tensor(draw(st.lists(st.sampled_from(VALUES), min_size=1, max_size=8)))
        cam = values[torch.randint(len(values), shape, generator=generator)]
    else:
        cam = torch.randn(shape, generator=generator)
    cam = cam.to(dtype).to(device)
    # Strides from slices of a larger tensor and from permuted dimensions.
    order = draw(st.permutations(range(3)))
    margin = [draw(st.integers(0, 2)) for _ in range(3)]
    larger = torch.full(
        [shape[d] + margin[d] for d in order], torch.inf, dtype=dtype, device=cam.device
    )
    view = larger.permute([order.index(d) for d in range(3)])
    view = view[tuple(slice(m, None) for m in margin)]
    view.copy_(cam)
    return view


@st.composite
def arguments(draw, min_batch=0, per_rank=True, device="cpu"):
    cam = draw(cams(min_batch, device))
    num_patches = draw(st.integers(1, min(cam.shape[1] * cam.shape[2], 12)))
    patch_size, stride = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    threshold = st.one_of(
        st.floats(0, 1), st.sampled_from([0.0, 1.0, 0.3, 1 / 3]), iou_values(patch_size, stride)
    )
    if per_rank and draw(st.booleans()):
        thresholds = draw(st.lists(threshold, min_size=num_patches, max_size=num_patches))
    else:
        thresholds = draw(threshold)
    return cam, num_patches, patch_size, stride, thresholds


def iou_values(patch_size: int, stride: int):
    """Thresholds that patches of the grid meet exactly, and their neighbours in float64."""
    cells = st.tuples(st.integers(0, 3), st.integers(0, 3))
    return st.builds(
        lambda cell, towards: min(1.0, math.nextafter(_iou(cell, patch_size, stride), towards)),
        cells,
        st.sampled_from([0.0, 2.0]),
    ) | cells.map(lambda cell: _iou(cell, patch_size, stride))


def _iou(cell, patch_size, stride):
    return iou((0, 0), cell, patch_size, stride)


@on_kernels
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_equals_reference_for_any_arguments(device, data):
    check(*data.draw(arguments(device=device)))


@settings(max_examples=6, deadline=None)
@given(arguments(min_batch=1))  # opcheck itself fails on the strides of some empty tensors
def test_opcheck(case):
    cam, num_patches, patch_size, stride, thresholds = case
    thresholds = thresholds if isinstance(thresholds, list) else [thresholds]
    torch.library.opcheck(RAW.default, (cam, num_patches, patch_size, stride, thresholds))


@settings(max_examples=100, deadline=None)
@given(arguments(min_batch=1, per_rank=False))
def test_qualified_patches_overlap_less_than_the_threshold(case):
    cam, num_patches, patch_size, stride, threshold = case
    selection = ops.select_patches(*case)
    width = cam.shape[2]
    for b in range(len(cam)):
        index = selection.index[b].tolist()
        assert len(set(index)) == num_patches  # no location twice
        qualified = index[: int(selection.num_qualified[b])]
        cells = [divmod(i, width) for i in qualified]
        for j, a in enumerate(cells):
            for other in cells[:j]:
                assert iou(a, other, patch_size, stride) < threshold
        # In visiting order: descending, equal ones by the lower index, NaN last.
        values = cam[b].flatten()[qualified].tolist()
        keys = [
            (math.isnan(v), 0.0 if math.isnan(v) else -v, i)
            for v, i in zip(values, qualified, strict=True)
        ]
        assert keys == sorted(keys)
        for i, corner in zip(index, selection.top_left[b].tolist(), strict=True):
            assert corner == [i // width * stride, i % width * stride]


@settings(max_examples=50, deadline=None)
@given(arguments(min_batch=2), st.randoms(use_true_random=False))
def test_images_do_not_depend_on_each_other(case, random):
    cam, *rest = case
    order = list(range(len(cam)))
    random.shuffle(order)
    selection = ops.select_patches(cam, *rest)
    shuffled = ops.select_patches(cam[order], *rest)
    for got, want in zip(shuffled, selection, strict=True):
        assert torch.equal(got, want[order])


# ---- cases


@on_kernels
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 1.0, [0.3, 0.3, 0.1, 0.5]])
def test_the_papers_grid(dtype, threshold, device):
    generator = torch.Generator().manual_seed(0)
    cam = torch.randn(6, 17, 17, generator=generator).to(dtype).to(device)
    check(cam, 4, 95, 8, threshold)


@on_kernels
def test_a_worked_example(device):
    # 2 x 2 patches, one pixel apart: neighbours share 2 of 6 pixels, diagonal ones 1 of 7.
    cam = cam_of([[9.0, 8.0, 1.0], [7.0, 6.0, 2.0], [3.0, 4.0, 5.0]], device)
    result = ops.select_patches(cam, 3, 2, 1, 0.3)
    assert result.index.tolist() == [[0, 4, 8]]
    assert result.top_left.tolist() == [[[0, 0], [1, 1], [2, 2]]]
    assert result.num_qualified.tolist() == [3]
    result = ops.select_patches(cam, 3, 2, 1, 0.1)
    assert result.index.tolist() == [[0, 8, 6]]
    assert result.num_qualified.tolist() == [3]
    # After the four corners nothing qualifies. The middle shares 1 of 7 pixels with each of them
    # and fills up first; the others share 2 of 6 with some patch, the most activated one follows.
    result = ops.select_patches(cam, 6, 2, 1, 0.1)
    assert result.index.tolist() == [[0, 8, 6, 2, 4, 1]]
    assert result.num_qualified.tolist() == [4]


@on_kernels
@pytest.mark.parametrize(("rows", "columns"), [(0, 1), (1, 0), (1, 1), (2, 1), (3, 3)])
@pytest.mark.parametrize("patch_size", [7, 95, 46340, 46341, (1 << 26) - 1, 1 << 26])
def test_thresholds_at_the_iou_of_two_patches(patch_size, rows, columns, device):
    """IoU < threshold decides to the last bit: planted exactly at, just above and just below."""
    stride = max(1, patch_size // 5)
    cam = torch.zeros(1, 5, 5, device=device)
    cam[0, 0, 0], cam[0, rows, columns] = 2, 1
    exact = iou((0, 0), (rows, columns), patch_size, stride)
    second = rows * 5 + columns
    for threshold, accepted in [
        (exact, False),
        (math.nextafter(exact, 0.0), False),
        (math.nextafter(exact, 1.0), True),
    ]:
        selection = check(cam, 2, patch_size, stride, threshold)
        assert (selection.index[0, 1].item() == second) == accepted


def test_reference_iou_is_the_rounded_fraction():
    for patch_size, rows, columns in [(95, 3, 2), ((1 << 26) - 5, 1, 2), (1 << 26, 3, 4)]:
        shared = (patch_size - rows) * (patch_size - columns)
        exact = Fraction(shared, 2 * patch_size**2 - shared)
        assert iou((0, 0), (rows, columns), patch_size, 1) == float(exact)


@on_kernels
@pytest.mark.parametrize("dtype", DTYPES)
def test_order_of_special_values(dtype, device):
    row = [math.nan, -math.inf, -0.0, 0.0, math.inf, math.nan, 3.0, math.inf, -1.0]
    row += [float(torch.finfo(dtype).max), torch.finfo(dtype).smallest_normal / 2]
    cam = cam_of([row], device, dtype)
    # Patches as wide as the stride never overlap, so this is the whole visiting order.
    selection = check(cam, len(row), 1, 1, 0.5)
    assert selection.index.tolist() == [[4, 7, 9, 6, 10, 2, 3, 8, 1, 0, 5]]
    assert selection.num_qualified.tolist() == [len(row)]


def test_negative_nan_is_last_as_well():
    bits = torch.tensor([[[-1, 0x7F800001, 0, -0x00800000]]], dtype=torch.int32)
    cam = bits.view(torch.float32)  # negative NaN, signalling NaN, 0, -inf
    assert ops.select_patches(cam, 4, 1, 1, 0.5).index.tolist() == [[2, 3, 0, 1]]


@on_kernels
@pytest.mark.parametrize("value", [0.0, math.nan, -math.inf, math.inf])
def test_equal_activations_go_by_index(value, device):
    cam = torch.full((2, 5, 6), value, device=device)
    selection = check(cam, 30, 3, 3, 0.5)
    assert torch.equal(selection.index, torch.arange(30, device=device).expand(2, 30))
    check(cam, 7, 4, 1, 0.2)


@on_kernels
@pytest.mark.parametrize("shape", [(0, 5, 5), (4, 1, 1), (2, 1, 9), (2, 9, 1), (3, 2, 13)])
@pytest.mark.parametrize("threshold", [0, 0.25, 1])
def test_shapes(shape, threshold, device):
    generator = torch.Generator().manual_seed(0)
    cam = torch.randn(shape, generator=generator).to(device)
    for num_patches in {1, min(3, shape[1] * shape[2]), shape[1] * shape[2]}:
        for patch_size, stride in [(1, 1), (3, 1), (5, 2), (2, 7), (1000, 1)]:
            check(cam, num_patches, patch_size, stride, threshold)


@on_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [0.3, 0.0, [0.4, 0.1, 0.3]])
@pytest.mark.parametrize("patch_size", [95, 50000])  # intersections of 32 and of 64 bits
def test_grids_larger_than_shared_memory(patch_size, threshold, dtype, device):
    generator = torch.Generator().manual_seed(0)
    cam = torch.randn(2, 71, 83, generator=generator).to(dtype).to(device)
    check(cam, 3, patch_size, patch_size // 12, threshold)


@on_devices
def test_more_images_than_blocks_with_global_state(device):
    generator = torch.Generator().manual_seed(0)
    cam = torch.randn(3, 80, 80, generator=generator).to(device)
    once = check(cam, 2, 95, 8, 0.3)
    many = ops.select_patches(cam.repeat(400, 1, 1), 2, 95, 8, 0.3)
    for got, want in zip(many, once, strict=True):
        assert torch.equal(got, want.repeat(400, *[1] * (want.ndim - 1)))


@on_kernels
def test_more_thresholds_than_kernel_arguments(device):
    generator = torch.Generator().manual_seed(0)
    cam = torch.randn(2, 9, 9, generator=generator).to(device)
    thresholds = torch.rand(81, generator=generator, dtype=torch.float64).tolist()
    check(cam, 81, 20, 8, thresholds)


@on_kernels
def test_thresholds_that_rise_and_fall(device):
    generator = torch.Generator().manual_seed(1)
    cam = torch.randn(8, 7, 7, generator=generator).to(device)
    selection = check(cam, 6, 30, 8, [0.0, 0.0, 0.5, 0.0, 1.0, 0.2])
    assert (selection.num_qualified < 6).all()
    # One value, one value for each rank, and any first value are the same.
    uniform = ops.select_patches(cam, 4, 30, 8, 0.2)
    for thresholds in ([0.2], [0.2] * 4, [1.0, 0.2, 0.2, 0.2], (0.2,)):
        for got, want in zip(ops.select_patches(cam, 4, 30, 8, thresholds), uniform, strict=True):
            assert torch.equal(got, want)


@on_kernels
def test_extreme_sizes(device):
    cam = torch.arange(12.0, device=device).view(1, 3, 4)
    check(cam, 12, 1 << 26, 1 << 31, 0.5)
    check(cam, 12, 1 << 26, 1, 0.9999999)
    check(cam, 12, 1 << 26, 1 << 24, 0.2)


@on_devices
def test_results_repeat_with_any_number_of_threads(device):
    cam = torch.randn(64, 17, 17, generator=torch.Generator().manual_seed(0)).to(device)
    expected = ops.select_patches(cam, 4, 95, 8)
    for count in (1, 2, 3):
        with using_threads(count):
            for got, want in zip(ops.select_patches(cam, 4, 95, 8), expected, strict=True):
                assert torch.equal(got, want)


# ---- autograd, compilation, the device


def test_integers_carry_no_gradient():
    cam = torch.randn(2, 5, 5, requires_grad=True)
    selection = ops.select_patches(cam, 3, 20, 8)
    assert not any(x.requires_grad for x in selection)
    with pytest.raises(RuntimeError, match="does not require grad"):
        selection.index.sum().backward()
    # Values picked by the selection do carry one.
    cam.flatten(1).gather(1, selection.index).sum().backward()
    assert int(cam.grad.count_nonzero()) == 6


@on_devices
def test_compiles_as_one_graph(device):
    def pick(cam):
        selection = ops.select_patches(cam * 2, 3, 20, 8, [0.3, 0.2, 0.1])
        return selection.top_left + 1, selection.num_qualified

    compiled = torch.compile(pick, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in [(2, 6, 7), (5, 4, 7)]:
        cam = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
        for got, want in zip(compiled(cam), pick(cam), strict=True):
            assert torch.equal(got, want)


@needs_cuda
def test_does_not_wait_for_the_device():
    cam = torch.randn(4, 9, 9, device="cuda")
    thresholds = [0.3 + j / 200 for j in range(81)]
    ops.select_patches(cam, 81, 20, 8, thresholds)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.select_patches(cam, 4, 20, 8)
        ops.select_patches(cam, 81, 20, 8, thresholds)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- wrong arguments

GOOD = {
    "cam": torch.zeros(2, 4, 5),
    "num_patches": 3,
    "patch_size": 20,
    "stride": 8,
    "iou_threshold": 0.3,
}
WRONG_VALUES = [
    ("cam", torch.zeros(4, 5), r"\(4, 5\)"),
    ("num_patches", 0, "got 0"),
    ("num_patches", -1, "got -1"),
    ("num_patches", 21, r"\[1, 20\] for a grid of 4 x 5, got 21"),
    ("patch_size", 0, "got 0"),
    ("patch_size", (1 << 26) + 1, "got 67108865"),
    ("stride", 0, "got 0"),
    ("stride", -8, "got -8"),
    ("stride", (1 << 31) + 1, "got 2147483649"),
    ("iou_threshold", -0.1, r"\[0, 1\], got -0.1"),
    ("iou_threshold", 1.1, r"\[0, 1\], got 1.1"),
    ("iou_threshold", math.nan, r"\[0, 1\], got nan"),
    ("iou_threshold", math.inf, r"\[0, 1\], got inf"),
    ("iou_threshold", [0.1, 0.2], "got 2"),
    ("iou_threshold", [], "got 0"),
    ("iou_threshold", [0.1, 0.2, -1.5], "got -1.5"),
]


@pytest.mark.parametrize(("name", "value", "text"), WRONG_VALUES)
def test_wrong_values(name, value, text):
    arguments = GOOD | {name: value}
    with pytest.raises(ValueError, match=f"{name} must .*{text}"):
        ops.select_patches(**arguments)
    thresholds = arguments["iou_threshold"]
    arguments["iou_threshold"] = thresholds if isinstance(thresholds, list) else [thresholds]
    with pytest.raises(RuntimeError, match=f"select_patches: {name} must .*{text}"):
        RAW(**arguments)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("cam", [[[1.0]]], "list"),
        ("cam", torch.zeros(2, 4, 5, dtype=torch.int64), "torch.int64"),
        ("cam", torch.zeros(2, 4, 5, dtype=torch.complex64), "torch.complex64"),
        ("num_patches", 3.0, "3.0"),
        ("num_patches", True, "True"),
        ("patch_size", "95", "'95'"),
        ("stride", None, "None"),
        ("iou_threshold", None, "None"),
        ("iou_threshold", "abc", "'a'"),
        ("iou_threshold", [0.1, "0.2", 0.3], "'0.2'"),
    ],
)
def test_wrong_types(name, value, text):
    with pytest.raises(TypeError, match=f"{name} must .*{text}"):
        ops.select_patches(**(GOOD | {name: value}))


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool, torch.uint8])
def test_raw_operator_refuses_other_dtypes(dtype):
    with pytest.raises(RuntimeError, match="select_patches: cam must be float32"):
        RAW(torch.zeros(2, 4, 5, dtype=dtype), 3, 20, 8, [0.3])


def test_an_empty_grid_has_no_patches():
    with pytest.raises(ValueError, match=r"\[1, 0\] for a grid of 0 x 5, got 1"):
        ops.select_patches(torch.zeros(2, 0, 5), 1, 20, 8)

"""class_activation_map against its specification, on each device and memory layout."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from devices import needs_cuda, on_devices, on_kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anchornet_ext import ops, reference
from anchornet_ext._machine import using_threads

RAW = torch.ops.anchornet_ext.class_activation_map
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# Both sides multiply the same numbers and add in float32 (float64), in another order.
TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-4},
    torch.float64: {"rtol": 1e-12, "atol": 1e-11},
}


def _inside(x: Tensor) -> Tensor:
    """`x` as the middle of a larger tensor that is NaN around it, so that reading outside shows."""
    larger = torch.full([size + 2 for size in x.shape], torch.nan, dtype=x.dtype, device=x.device)
    view = larger[tuple(slice(1, size + 1) for size in x.shape)]
    view.copy_(x)
    return view


def _channels_last(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


# How the values of a (B, C, h, w) tensor may lie in memory.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": _channels_last,
    "sliced": _inside,
    "sliced_channels_last": lambda x: _inside(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "batch_innermost": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
}
WEIGHT_LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda w: w.contiguous(),
    "transposed": lambda w: w.t().contiguous().t(),
    "sliced": _inside,
}


def make(shape, dtype=torch.float32, weight_dtype=None, device="cpu", classes=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(shape, generator=generator).to(dtype)
    weight = torch.randn(classes, shape[1], generator=generator).to(weight_dtype or dtype)
    class_index = torch.randint(classes, (shape[0],), generator=generator)
    return features.to(device), weight.to(device), class_index.to(device)


def check(features: Tensor, weight: Tensor, class_index: Tensor) -> Tensor:
    result = ops.class_activation_map(features, weight, class_index)
    expected = reference.class_activation_map(features, weight, class_index)
    assert result.is_contiguous()
    torch.testing.assert_close(result, expected, **TOLERANCE[expected.dtype])
    return result


# ---- values


@on_kernels
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    # AnchorNet's grids, one location, a single channel, more channels than fit into one block.
    "shape",
    [
        (3, 96, 17, 17),
        (1, 512, 17, 17),
        (2, 37, 5, 7),
        (5, 8, 1, 1),
        (2, 1, 4, 3),
        (1, 1030, 3, 45),
    ],
)
def test_equals_reference(shape, dtype, layout, device):
    features, weight, class_index = make(shape, dtype, torch.float32, device)
    check(LAYOUTS[layout](features), weight, class_index)


@on_kernels
@pytest.mark.parametrize("weight_layout", WEIGHT_LAYOUTS)
@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_any_dtype(dtype, weight_dtype, weight_layout, device):
    for layout in ("contiguous", "channels_last"):
        features, weight, class_index = make((2, 70, 3, 5), dtype, weight_dtype, device)
        check(LAYOUTS[layout](features), WEIGHT_LAYOUTS[weight_layout](weight), class_index)


@st.composite
def arguments(draw, max_pixels=9, min_size=0, device="cpu"):
    sizes = (
        draw(st.integers(min_size, 4)),
        draw(st.integers(min_size, 70)),
        draw(st.integers(1, max_pixels)),
        draw(st.integers(1, max_pixels)),
    )
    features, weight, class_index = make(
        sizes,
        draw(st.sampled_from(DTYPES)),
        draw(st.sampled_from(DTYPES)),
        device,
        draw(st.integers(1, 5)),
        draw(st.integers(0, 1000)),
    )
    features = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](features)
    weight = WEIGHT_LAYOUTS[draw(st.sampled_from(sorted(WEIGHT_LAYOUTS)))](weight)
    return features, weight, class_index


@on_kernels
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_equals_reference_for_any_arguments(device, data):
    check(*data.draw(arguments(device=device)))


@settings(max_examples=8, deadline=None)
@given(arguments(max_pixels=3, min_size=1))  # opcheck itself fails on the strides of empty tensors
def test_opcheck(case):
    torch.library.opcheck(RAW.default, case)


def test_opcheck_with_gradients():
    features, weight, class_index = make((2, 5, 3, 4))
    torch.library.opcheck(
        RAW.default, (features.requires_grad_(), weight.requires_grad_(), class_index)
    )


@on_kernels
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_do_not_depend_on_the_batch_or_the_threads(dtype, layout, device):
    features, weight, class_index = make((5, 67, 13, 11), dtype, device=device)
    features = LAYOUTS[layout](features)
    together = ops.class_activation_map(features, weight, class_index)
    for count in (1, 3):
        with using_threads(count):
            alone = [
                ops.class_activation_map(features[b : b + 1], weight, class_index[b : b + 1])
                for b in range(5)
            ]
            assert torch.equal(torch.cat(alone), together)
            assert torch.equal(ops.class_activation_map(features, weight, class_index), together)


@on_kernels
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_accumulates_in_float32(dtype, layout, device):
    # In float16 the sum would stop at 2048, in bfloat16 at 256.
    features = LAYOUTS[layout](torch.ones(1, 5000, 2, 3, dtype=dtype, device=device))
    weight = torch.ones(1, 5000, dtype=dtype, device=device)
    result = ops.class_activation_map(features, weight, torch.zeros_like(weight[:, 0]).long())
    assert result.dtype == torch.float32
    assert (result == 5000).all()


@on_kernels
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_special_values_stay_where_they_are(dtype, layout, device):
    features, weight, class_index = make((2, 40, 6, 7), dtype, device=device)
    weight = weight.abs() + 0.5
    expected = torch.zeros(2, 6, 7, device=device)
    for b, c, y, x, value in [
        (0, 39, 1, 2, torch.inf),
        (0, 3, 5, 6, -torch.inf),
        (1, 0, 0, 0, torch.nan),
    ]:
        features[b, c, y, x] = value
        expected[b, y, x] = value
    result = ops.class_activation_map(LAYOUTS[layout](features), weight, class_index)
    special = ~result.isfinite()
    assert torch.equal(special, expected != 0)
    torch.testing.assert_close(result[special].float(), expected[special], equal_nan=True)


@on_kernels
def test_every_float16_number_is_read_exactly(device):
    values = torch.arange(1 << 16).to(torch.int32).to(torch.int16).view(torch.float16).to(device)
    weight = torch.ones(1, 1, device=device)
    zero = torch.zeros(1, dtype=torch.int64, device=device)
    result = ops.class_activation_map(values.view(1, 1, 256, 256), weight, zero).flatten()
    torch.testing.assert_close(result, values.float(), rtol=0, atol=0, equal_nan=True)


@on_kernels
@pytest.mark.parametrize("shape", [(0, 3, 4, 5), (2, 0, 4, 5), (2, 3, 0, 5), (2, 3, 4, 0)])
def test_empty(shape, device):
    features, weight, class_index = make(shape, device=device)
    result = check(features, weight, class_index)
    assert result.shape == (shape[0], *shape[2:])


@on_kernels
def test_no_images_and_no_classes(device):
    features, weight, class_index = make((0, 3, 4, 5), device=device)
    assert ops.class_activation_map(features, weight[:0], class_index).shape == (0, 4, 5)


@on_kernels
@pytest.mark.parametrize("expanded", [0, 1, 2, 3])
def test_expanded_features(expanded, device):
    shape = [3, 20, 5, 6]
    sizes = [1 if d == expanded else size for d, size in enumerate(shape)]
    features, _, _ = make(sizes, device=device)
    _, weight, class_index = make(shape, device=device)
    check(features.expand(shape), weight, class_index)


@on_kernels
def test_offsets_beyond_two_to_the_31_bytes(device):
    # Only the pages that are used become real memory on the CPU.
    step = 1 << 30
    storage = torch.empty(3 * step + 4, dtype=torch.bfloat16, device=device)
    for strides in [(step, 2 * step, 2, 1), (2 * step, 1, step, 2), (1, 2, 2 * step, step)]:
        features = storage.as_strided((2, 2, 2, 2), strides)
        values, weight, class_index = make((2, 2, 2, 2), torch.bfloat16, device=device)
        features.copy_(values)
        result = ops.class_activation_map(features, weight, class_index)
        torch.testing.assert_close(
            result, reference.class_activation_map(values, weight, class_index)
        )


@on_kernels
def test_strided_class_index(device):
    features, weight, class_index = make((6, 3, 4, 5), device=device)
    spread = torch.full((6, 3), -1, dtype=torch.int64, device=device)
    spread[:, 1] = class_index
    check(features, weight, spread[:, 1])


# ---- gradients


@on_devices
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradients(layout, device):
    features, weight, class_index = make((4, 3, 2, 3), torch.float64, device=device, classes=3)
    features = LAYOUTS[layout](features).requires_grad_()
    inputs = (features, weight.requires_grad_(), class_index)
    assert torch.autograd.gradcheck(ops.class_activation_map, inputs)
    assert torch.autograd.gradgradcheck(ops.class_activation_map, inputs)


@on_devices
@pytest.mark.parametrize("weight_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_gradients_equal_those_of_the_reference(wanted, dtype, weight_dtype, device):
    gradients = []
    for function in (ops.class_activation_map, reference.class_activation_map):
        features, weight, class_index = make((4, 6, 3, 5), dtype, weight_dtype, device, classes=3)
        inputs = [features.requires_grad_(wanted[0]), weight.requires_grad_(wanted[1])]
        function(*inputs, class_index).square().sum().backward()
        gradients.append([x.grad for x in inputs])
        assert [x.grad is not None for x in inputs] == list(wanted)
    for got, want in zip(*gradients, strict=True):
        # The gradient of a float64 weight is no more precise than the float32 sum it comes from.
        wide = got is not None and got.dtype == torch.float64
        torch.testing.assert_close(got, want, **(TOLERANCE[torch.float32] if wide else {}))


def test_no_gradient_is_recorded_where_none_is_wanted():
    assert not ops.class_activation_map(*make((1, 2, 3, 4))).requires_grad


# ---- autocast, fake tensors, compilation


@on_devices
@pytest.mark.parametrize("dtype", DTYPES)
def test_autocast_leaves_the_features_as_they_are(dtype, device):
    features, weight, class_index = make((2, 40, 5, 6), dtype, torch.float32, device)
    features.requires_grad_()
    expected = ops.class_activation_map(features, weight, class_index)
    with torch.autocast(device, dtype=torch.bfloat16):
        result = ops.class_activation_map(features, weight, class_index)
    assert result.dtype == expected.dtype
    assert torch.equal(result, expected)
    result.sum().backward()
    assert features.grad.dtype == dtype


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiles_as_one_graph(dtype, device):
    def loss(features, weight, class_index):
        return (2 * ops.class_activation_map(features, weight, class_index)).square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for shape in [(2, 6, 3, 4), (3, 6, 5, 4)]:
        gradients = []
        for function in (compiled, loss):
            features, weight, class_index = make(shape, dtype, torch.float32, device)
            function(features.requires_grad_(), weight.requires_grad_(), class_index).backward()
            gradients.append((features.grad, weight.grad))
        for got, want in zip(*gradients, strict=True):
            torch.testing.assert_close(got, want)


@needs_cuda
def test_does_not_wait_for_the_device():
    features, weight, class_index = make((4, 96, 17, 17), device="cuda")
    ops.class_activation_map(features, weight, class_index)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ops.class_activation_map(features, weight, class_index)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---- wrong arguments

GOOD = make((2, 3, 4, 5))


def with_argument(position: int, value: object) -> list[object]:
    changed: list[object] = list(GOOD)
    changed[position] = value
    return changed


WRONG_TYPE = {
    "features_int": (0, torch.ones(2, 3, 4, 5, dtype=torch.int32), "torch.int32"),
    "weight_bool": (1, torch.ones(10, 3, dtype=torch.bool), "torch.bool"),
    "index_int32": (2, torch.zeros(2, dtype=torch.int32), "torch.int32"),
    "index_float": (2, torch.zeros(2), "torch.float32"),
}
WRONG_VALUE = {
    "features_3d": (0, torch.ones(3, 4, 5), r"\(3, 4, 5\)"),
    "weight_1d": (1, torch.ones(3), r"\(3,?\)"),
    "weight_channels": (1, torch.ones(10, 4), r"\(10, 4\)"),
    "weight_empty": (1, torch.ones(0, 3), r"\(0, 3\)"),
    "index_2d": (2, torch.zeros(2, 1, dtype=torch.int64), r"\(2, 1\)"),
    "index_length": (2, torch.zeros(3, dtype=torch.int64), r"\(3,?\)"),
}


@pytest.mark.parametrize("case", WRONG_TYPE)
def test_wrong_types(case):
    position, value, text = WRONG_TYPE[case]
    with pytest.raises(TypeError, match=text):
        ops.class_activation_map(*with_argument(position, value))
    with pytest.raises(RuntimeError, match="class_activation_map: "):
        RAW(*with_argument(position, value))


@pytest.mark.parametrize("position", [0, 1, 2])
def test_not_a_tensor(position):
    with pytest.raises(TypeError, match="list"):
        ops.class_activation_map(*with_argument(position, [1.0]))


@pytest.mark.parametrize("case", WRONG_VALUE)
def test_wrong_shapes(case):
    position, value, text = WRONG_VALUE[case]
    with pytest.raises(ValueError, match=text):
        ops.class_activation_map(*with_argument(position, value))
    with pytest.raises(RuntimeError, match="class_activation_map: .*" + text):
        RAW(*with_argument(position, value))


@pytest.mark.parametrize("wrong", [-1, 10, -(1 << 63), (1 << 63) - 1])
def test_class_out_of_range(wrong):
    class_index = torch.tensor([3, wrong])
    with pytest.raises(RuntimeError, match=rf"class_index\[1\] is {wrong}, outside \[0, 10\)"):
        ops.class_activation_map(*with_argument(2, class_index))
    with pytest.raises(ValueError, match=rf"class_index\[1\] is {wrong}, outside \[0, 10\)"):
        ops.class_activation_map(*with_argument(2, class_index), validate=True)
    assert ops.class_activation_map(*GOOD, validate=True).shape == (2, 4, 5)


@needs_cuda
@pytest.mark.parametrize("layout", LAYOUTS)
def test_cuda_clamps_the_class(layout):
    features, weight, _ = make((4, 40, 5, 6), device="cuda")
    features = LAYOUTS[layout](features)
    wrong = torch.tensor([-1, 10, -(1 << 63), (1 << 63) - 1], device="cuda")
    result = ops.class_activation_map(features, weight, wrong)
    assert torch.equal(result, ops.class_activation_map(features, weight, wrong.clamp(0, 9)))
    with pytest.raises(ValueError, match=r"class_index\[0\] is -1"):
        ops.class_activation_map(features, weight, wrong, validate=True)


def test_devices_must_be_the_same():
    features, weight, class_index = GOOD
    with pytest.raises(ValueError, match="one device, got cpu, meta and cpu"):
        ops.class_activation_map(features, weight.to("meta"), class_index)


def test_inputs_are_not_written_to():
    before = [x.clone() for x in GOOD]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.class_activation_map(*GOOD)
    assert all(torch.equal(x, y) for x, y in zip(before, GOOD, strict=True))

"""resize_images against its specification and against torch, on every device there is."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from devices import on_devices, on_kernels
from hypothesis import given, settings
from patch_cases import FLOATS, FORMATS, LAYOUTS, is_in_format, lay_out, random_images
from torch import Tensor
from torch.nn import functional

from anchornet_ext import ops, reference
from anchornet_ext._machine import using_threads

RAW = torch.ops.anchornet_ext.resize_images.default
# Of the largest value; sums of 16 products, rounded to the type of the result.
TOLERANCE = {
    torch.float32: 4e-6,
    torch.float64: 1e-13,
    torch.float16: 1e-3,
    torch.bfloat16: 8e-3,
}


def statistics(channels: int) -> tuple[Tensor, Tensor]:
    mean = torch.linspace(0.4, 0.6, channels, dtype=torch.float64)
    return mean, torch.linspace(0.2, 0.3, channels, dtype=torch.float64)


def assert_near(result: Tensor, expected: Tensor) -> None:
    assert result.dtype == expected.dtype
    assert result.shape == expected.shape
    largest = expected.double().abs().max().item() if expected.numel() else 0.0
    torch.testing.assert_close(
        result.cpu().double(),
        expected.cpu().double(),
        rtol=0,
        atol=TOLERANCE[result.dtype] * max(largest, 1.0),
    )


@on_kernels
@settings(deadline=None, max_examples=120)
@given(data=st.data())
def test_equals_the_reference(device: str, data: st.DataObject) -> None:
    n, c = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    h, w = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    size = data.draw(st.integers(1, 45)), data.draw(st.integers(1, 45))
    dtype = data.draw(st.sampled_from((torch.uint8, *FLOATS)))
    to = data.draw(st.sampled_from((None, *FLOATS)))
    memory_format = data.draw(st.sampled_from(FORMATS))
    seed = torch.Generator().manual_seed(data.draw(st.integers(0, 9)))
    images = random_images((n, c, h, w), dtype, seed).to(device)
    images = lay_out(images, data.draw(st.sampled_from(LAYOUTS)))
    mean, std = statistics(c) if data.draw(st.booleans()) else (None, None)
    result = ops.resize_images(
        images, size, mean=mean, std=std, dtype=to, memory_format=memory_format
    )
    expected = reference.resize_images(images.cpu(), size, mean, std, to)
    assert is_in_format(result, memory_format)
    assert_near(result, expected)


@on_kernels
@pytest.mark.parametrize("size", [(95, 95), (61, 130), (1, 1), (224, 224), (9, 21)])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "window"])
def test_equals_torch(device: str, layout: str, size: tuple[int, int]) -> None:
    images = lay_out(torch.rand(2, 3, 224, 200, device=device), layout)
    expected = functional.interpolate(images, size=size, mode="bicubic", align_corners=True)
    result = ops.resize_images(images, size)
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-6)


@on_kernels
def test_the_same_size_copies(device: str) -> None:
    images = torch.randint(0, 256, (2, 3, 9, 8), dtype=torch.uint8, device=device)
    assert torch.equal(ops.resize_images(images, (9, 8)), images.float())


@on_kernels
def test_bytes_are_normalised_as_if_before(device: str) -> None:
    images = torch.randint(0, 256, (2, 3, 50, 41), dtype=torch.uint8, device=device)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    means, stds = (torch.tensor(x, device=device)[:, None, None] for x in (mean, std))
    expected = functional.interpolate(
        (images / 255 - means) / stds, size=(20, 19), mode="bicubic", align_corners=True
    )
    result = ops.resize_images(images, (20, 19), mean=mean, std=std)
    torch.testing.assert_close(result, expected, rtol=0, atol=5e-6)


def test_a_pixel_by_hand() -> None:
    """The middle of four pixels at a half: weights -3/32, 19/32, 19/32, -3/32."""
    images = torch.tensor([1.0, 2.0, 10.0, 7.0]).reshape(1, 1, 1, 4)
    result = ops.resize_images(images, (1, 3))
    middle = (-3 * 1 + 19 * 2 + 19 * 10 - 3 * 7) / 32
    torch.testing.assert_close(result.flatten(), torch.tensor([1.0, middle, 7.0]))


@on_kernels
@pytest.mark.parametrize("memory_format", FORMATS)
def test_nothing_to_resize(device: str, memory_format: torch.memory_format) -> None:
    for n, c in ((0, 3), (2, 0)):
        images = torch.zeros(n, c, 8, 9, device=device)
        result = ops.resize_images(images, (3, 2), memory_format=memory_format)
        assert result.shape == (n, c, 3, 2)


def test_threads_do_not_change_the_result() -> None:
    images = torch.rand(3, 3, 120, 100)
    results = []
    for count in (1, 2, 3):
        with using_threads(count):
            results.append(ops.resize_images(images, 47))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


IMAGES = torch.zeros(2, 3, 8, 9)
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "images type": ({"images": [1]}, TypeError, "got list"),
    "images dtype": ({"images": IMAGES.int()}, TypeError, "torch.int32"),
    "images shape": ({"images": IMAGES[0]}, ValueError, r"\(3, 8, 9\)"),
    "no pixels": ({"images": IMAGES[:, :, :0]}, ValueError, r"\(2, 3, 0, 9\)"),
    "size zero": ({"size": (0, 4)}, ValueError, r"\(0, 4\)"),
    "size negative": ({"size": -3}, ValueError, "-3"),
    "size triple": ({"size": (1, 2, 3)}, ValueError, r"\(1, 2, 3\)"),
    "mean alone": ({"mean": [0.0] * 3}, ValueError, "together"),
    "mean length": ({"mean": [0.0] * 2, "std": [1.0] * 3}, ValueError, r"mean .*\(2,\)"),
    "std zero": ({"mean": [0.0] * 3, "std": [1, 0.0, 1]}, ValueError, r"\[1.0, 0.0, 1.0\]"),
    "std tensor zero": (
        {"mean": torch.zeros(3), "std": torch.tensor([1.0, 0, 1])},
        ValueError,
        r"\[1.0, 0.0, 1.0\]",
    ),
    "mean gradient": (
        {"mean": torch.zeros(3, requires_grad=True), "std": [1.0] * 3},
        ValueError,
        "constant of resize_images",
    ),
    "dtype": ({"dtype": torch.uint8}, TypeError, "torch.uint8"),
    "memory format": ({"memory_format": torch.channels_last_3d}, ValueError, "3d"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    changed, error, match = BAD[case]
    arguments: dict[str, Any] = {"images": IMAGES, "size": (3, 4)}
    ops.resize_images(**arguments)  # good as it is
    with pytest.raises(error, match=match):
        ops.resize_images(**{**arguments, **changed})


RAW_BAD: dict[str, tuple[dict[int, Any], str]] = {
    "images dtype": ({0: IMAGES.int()}, "got Int"),
    "images shape": ({0: IMAGES[0]}, r"\(3, 8, 9\)"),
    "no pixels": ({0: IMAGES[..., :0]}, r"\(2, 3, 8, 0\)"),
    "size zero": ({1: 0}, "got 0 x 4"),
    "mean alone": ({3: torch.zeros(3)}, "together"),
    "std shape": ({3: torch.zeros(3), 4: torch.ones(2)}, r"std must be \(C\).*\(2\)"),
    "std zero": ({3: torch.zeros(3), 4: torch.tensor([1.0, 1, 0])}, "channel 2"),
    "dtype": ({5: torch.uint8}, "got Byte"),
}


@pytest.mark.parametrize("case", RAW_BAD)
def test_operator_refuses_bad_input(case: str) -> None:
    changed, match = RAW_BAD[case]
    arguments = [IMAGES, 3, 4, None, None, torch.float32, False]
    RAW(*arguments)  # good as it is
    for position, value in changed.items():
        arguments[position] = value
    with pytest.raises(RuntimeError, match=match):
        RAW(*arguments)


@on_devices
@pytest.mark.parametrize("normalise", [False, True])
def test_gradients(device: str, normalise: bool) -> None:
    mean, std = statistics(2) if normalise else (None, None)
    images = torch.randn(2, 2, 5, 4, dtype=torch.float64, device=device, requires_grad=True)

    def resize(x: Tensor) -> Tensor:
        return ops.resize_images(x, (3, 6), mean=mean, std=std)

    assert torch.autograd.gradcheck(resize, (images,))
    assert torch.autograd.gradgradcheck(resize, (images,))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("to", FLOATS)
def test_gradient_has_the_images_dtype(dtype: torch.dtype, to: torch.dtype) -> None:
    images = torch.randn(1, 2, 4, 4).to(dtype).requires_grad_()
    result = ops.resize_images(images, (4, 4), mean=[0.0, 0.0], std=[0.5, 2.0], dtype=to)
    (gradient,) = torch.autograd.grad(result.sum(), images)
    assert gradient.dtype == dtype
    assert gradient[0, :, 0, 0].tolist() == [2, 0.5]


@pytest.mark.parametrize("size", [(1, 9), (9, 1), (2, 2), (30, 41)])
def test_gradient_is_that_of_torch(size: tuple[int, int]) -> None:
    images = torch.randn(2, 3, *size, requires_grad=True)
    direction = torch.randn(2, 3, 11, 7)
    gradients = [
        torch.autograd.grad((result * direction).sum(), images)[0]
        for result in (
            ops.resize_images(images, (11, 7)),
            functional.interpolate(images, size=(11, 7), mode="bicubic", align_corners=True),
        )
    ]
    torch.testing.assert_close(*gradients, rtol=0, atol=2e-5)


def test_an_empty_batch_has_a_gradient() -> None:
    images = torch.zeros(0, 3, 4, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(ops.resize_images(images, 2).sum(), images)
    assert gradient.shape == images.shape


@on_devices
def test_opcheck(device: str) -> None:
    mean, std = (x.float().to(device) for x in statistics(3))
    images = torch.randn(2, 3, 8, 9, device=device)
    for x, statistic, dtype, channels_last in (
        (images.requires_grad_(), (None, None), torch.float32, False),
        ((images * 9).detach().byte(), (mean, std), torch.float16, True),
    ):
        torch.library.opcheck(RAW, (x, 3, 4, *statistic, dtype, channels_last))


@on_devices
def test_compiles_without_graph_breaks(device: str) -> None:
    mean, std = (x.float().to(device) for x in statistics(3))

    def resize(images: Tensor) -> Tensor:
        return ops.resize_images(images, 5, mean=mean, std=std) * 2

    compiled = torch.compile(resize, fullgraph=True, dynamic=True, backend="aot_eager")
    for n, h, w in ((2, 9, 8), (3, 7, 11)):
        images = torch.randn(n, 3, h, w, device=device)
        assert torch.equal(compiled(images), resize(images))

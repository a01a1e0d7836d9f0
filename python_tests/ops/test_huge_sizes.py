"""Sizes, strides and settings near 2^31 and 2^63: refused with their numbers, or without effect.

The operators are called without their Python wrappers, which refuse some of this by themselves.
Tensors of such sizes are empty, or one number that is repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from anchornet_ext import ops
from anchornet_ext.reference.map_program import MapStep

OPS = torch.ops.anchornet_ext
MOST = 2**63 - 1
FAR = 2**62
LAST = torch.channels_last
FLOATS = torch.float32


def repeated(*shape: int) -> Tensor:
    """Of any shape, in the memory of one float."""
    return torch.zeros(()).as_strided(shape, (0,) * len(shape))


def empty(shape: Sequence[int], strides: Sequence[int] | None = None) -> Tensor:
    return torch.empty(0).as_strided(shape, (1,) * len(shape) if strides is None else strides)


def last(*shape: int) -> Tensor:
    return torch.zeros(shape).contiguous(memory_format=LAST)


def index(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def corners(count: int) -> Tensor:
    return torch.zeros(count, 2, dtype=torch.int64)


def resize(images: Tensor, height: int, width: int, channels_last: bool = False) -> Any:
    return OPS.resize_images(images, height, width, None, None, FLOATS, channels_last)


def gather(images: Tensor, count: int, height: int, width: int) -> Any:
    places = corners(1).expand(count, 2), index(0).expand(count)
    return OPS.gather_patches(images, places[1], places[0], height, width, None, None, FLOATS, True)


def scatter(size: tuple[int, int, int, int]) -> Any:
    images, channels, height, width = size
    return OPS.scatter_patches(
        torch.zeros(0, channels, 1, 1), index(), corners(0), images, height, width
    )


def chain(images: Tensor, e: int = 16, q: int = 4, o: int = 8, k: int = 1, stride: int = 1) -> Any:
    """One block with e expanded, q squeezed and o output channels and a kernel of k."""
    shapes = [(e, images.shape[1], k, k), (e,), (e, 1, 3, 3), (e,), (q, e), (q,), (e, q), (e,)]
    parameters = [repeated(*shape) for shape in (*shapes, (o, e, 1, 1), (o,))]
    return OPS.mbconv_chain(images, parameters, [stride], [1], True)


def residuals(images: Tensor, *layers: Sequence[int], weights: int = 0) -> Any:
    settings = [n for layer in layers for n in (*layer, *(0,) * (12 - len(layer)))]
    return OPS.inverted_residuals(images, torch.zeros(weights), settings)


def maps(
    images: Tensor,
    kernel: Sequence[int] = (1, 1),
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
) -> Any:
    weight = torch.zeros(16 * min(images.shape[1], 16))
    return OPS.convolve_maps(images, weight, None, 16, kernel, stride, padding, dilation, None, 0)


def program(images: Tensor, head: Sequence[int] = (1, 2, 1, 1), **fields: int) -> Any:
    """One 1x1 convolution to 16 channels, or what `fields` make of it."""
    names = "kind source target total channels add activation kernel kernel_width stride "
    names += "stride_width padding padding_width dilation dilation_width weight bias"
    values = (0, 0, 1, -1, 16, -1, 0, *(1,) * 4, 0, 0, 1, 1, 0, -1)
    step = dict(zip(names.split(), values, strict=True))
    code = index(*head, 1, *{**step, **fields}.values())
    return OPS.run_map_program([images], torch.zeros(48), torch.zeros(16), code, [0, 16, 0])


def cells(shape: Sequence[int]) -> Any:
    weight = torch.zeros(1, 1, min(shape[3], 16), 16)
    return OPS.convolve_cells(
        empty(shape), None, weight, torch.zeros(1, 16), [0], 16, None, None, 0
    )


def fuse(cell: tuple[int, int, int], slots: tuple[int, int, int], size: tuple[int, int]) -> Any:
    where = torch.empty(0, dtype=torch.int64).as_strided((0, *slots), (1,) * 4)
    return OPS.fuse_cells(empty((0, 3, 2, 2)), empty((0, *cell)), where, torch.zeros(0, 3), *size)


TOO_MANY = r"more than 2\^56 elements"
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "resize to": (lambda: resize(torch.zeros(1, 3, 4, 4), 2**32, 2**32), TOO_MANY),
    "resize none to": (lambda: resize(torch.zeros(0, 3, 4, 4), 2**32, 2**32), TOO_MANY),
    "resize no channels": (lambda: resize(torch.zeros(1, 0, 4, 4), MOST, MOST, True), TOO_MANY),
    "resize from": (lambda: resize(repeated(1, 1, 1, FAR), 1, 1), TOO_MANY),
    "resize none from": (lambda: resize(empty((0, 3, FAR, FAR)), 1, 1), TOO_MANY),
    "gather number": (lambda: gather(torch.zeros(1, 3, 4, 4), 2**60, 2, 2), TOO_MANY),
    "gather size": (lambda: gather(repeated(1, 3, 2**30, 2**30), 1, 2**30, 2**30), TOO_MANY),
    "scatter number": (lambda: scatter((MOST, 1, 1, 1)), TOO_MANY),
    "scatter size": (lambda: scatter((1, 1, 2**32, 2**32)), TOO_MANY),
    "scatter none": (lambda: scatter((0, 1, MOST, MOST)), TOO_MANY),
    "scatter product": (lambda: scatter((2**33, 0, 2**31, 1)), TOO_MANY),
    "map": (
        lambda: OPS.class_activation_map(repeated(1, FAR, 1, 1), repeated(1, FAR), index(0)),
        TOO_MANY,
    ),
    "select": (
        lambda: OPS.select_patches(empty((0, 2**15, 2**15)), 2**31, 3, 1, [0.3]),
        "2147483648",
    ),
    "chain stride": (lambda: chain(torch.zeros(1, 3, 9, 9), stride=MOST), f"2\\^31, got {MOST}"),
    "chain half of it": (lambda: chain(torch.zeros(1, 3, 9, 9), stride=FAR), f"2\\^31, got {FAR}"),
    "chain expanded": (
        lambda: chain(torch.zeros(1, 1, 9, 9), e=FAR // 9, q=1, o=1),
        "below 2\\^31",
    ),
    "chain squeezed": (lambda: chain(torch.zeros(1, 1, 9, 9), e=1, q=FAR, o=1), "below 2\\^31"),
    "chain out": (lambda: chain(torch.zeros(0, 1, 9, 9), e=1, q=1, o=MOST), "below 2\\^31"),
    "chain weights": (lambda: chain(torch.zeros(1, 1, 9, 9), e=2**30, q=2**30), TOO_MANY),
    "chain images": (lambda: chain(empty((0, 3, FAR, FAR))), TOO_MANY),
    "residuals channels": (lambda: residuals(last(1, 4, 4, 4), (1, 1, MOST)), f"got {MOST}"),
    "residuals kernel": (lambda: residuals(last(1, 4, 4, 4), (MOST, 1, 4)), f"got {MOST}"),
    "residuals stride": (lambda: residuals(last(1, 4, 4, 4), (3, MOST, 4)), f"got {MOST}"),
    # Their weights add up to 2^64, that is to none.
    "residuals sum": (lambda: residuals(last(1, 1, 4, 4), (1, 1, FAR), (1, 1, 1)), f"got {FAR}"),
    "residuals product": (
        lambda: residuals(last(1, 1, 4, 4), (2**31 - 1, 1, 2**31 - 1)),
        TOO_MANY,
    ),
    "residuals more": (
        lambda: residuals(last(1, 1, 4, 4), (1, 1, 2**30), (1, 1, 2**20)),
        r"packed as \(1073741824\) or more",
    ),
    "residuals images": (
        lambda: residuals(empty((0, 1, 2**33, 2**33), (0, 1, 2**33, 1)), (1, 1, 16)),
        f"channels_last, got shape .*{2**33}",
    ),
    "maps kernel": (lambda: maps(last(1, 3, 4, 4), kernel=(MOST, 1)), "kernel .* below 2\\^31"),
    "maps padding": (
        lambda: maps(last(1, 1, 4, 4), padding=(2**31 - 1,) * 2),
        "pixels is more than it can take",
    ),
    "maps images": (
        lambda: maps(empty((0, 1, FAR, 1), (FAR, 1, 1, 1))),
        f"channels_last, got shape .*{FAR}",
    ),
    "program values": (lambda: program(last(1, 3, 4, 4), (1, 2, MOST, 1)), f"of {MOST} steps"),
    "program weights": (
        lambda: program(last(1, 3, 4, 4), weight=MOST),
        f"weights from {MOST} on, 48 of",
    ),
    "program bias": (
        lambda: program(last(1, 3, 4, 4), bias=MOST),
        f"parameters from {MOST} on, 16 of",
    ),
    "program kernel": (lambda: program(last(1, 3, 4, 4), kernel=MOST), "out of range"),
    "program images": (
        lambda: program(empty((0, 1, FAR, 1), (FAR, 1, 1, 1))),
        f"channels_last, got shape .*{FAR}",
    ),
    "program padded": (
        lambda: program(empty((0, 1, 2**55, 1), (2**55, 1, 1, 1)), padding_width=2**10),
        TOO_MANY,
    ),
    "program inputs": (
        lambda: program(empty((0, 2**55, 1, 1), (2**55, 1, 2**55, 2**55))),
        f"16 channels of {2**55}",
    ),
    "cells": (lambda: cells((0, FAR, FAR, 1)), TOO_MANY),
    "cells channels": (lambda: cells((0, 1, 1, MOST)), TOO_MANY),
    "fuse groups": (lambda: fuse((2, 2, FAR), (FAR, 2, 2), (2, 2)), TOO_MANY),
    "fuse rows": (lambda: fuse((FAR, 1, 3), (1, FAR, 1), (2, 2)), TOO_MANY),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_no_memory_holds_is_refused(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(RuntimeError, match=message):
        call()


def with_strides(x: Tensor, stride: int) -> Tensor:
    """`x` with this stride in every dimension of one entry."""
    strides = [stride if n == 1 else s for n, s in zip(x.shape, x.stride(), strict=True)]
    return x.as_strided(x.shape, strides)


@pytest.mark.parametrize("stride", [2**31, FAR, MOST])
def test_strides_of_single_entries_mean_nothing(stride: int) -> None:
    generator = torch.Generator().manual_seed(0)

    def far(x: Tensor) -> Tensor:
        return with_strides(x, stride)

    def same(run: Callable[..., Any], *arguments: Tensor) -> None:
        torch.testing.assert_close(run(*map(far, arguments)), run(*arguments), rtol=0, atol=0)

    images = torch.rand(1, 1, 12, 12, generator=generator)
    column, pixel = images[..., :1].contiguous(), images[..., :1, :1].contiguous()
    for x in (images, column, column.transpose(2, 3), pixel):
        same(lambda x: resize(x, 5, 3), x)
        same(lambda x: resize(x, 5, 3, True), x)
        same(lambda x, i, c: ops.gather_patches(x, c, 1, i), x, index(0), corners(1))
        same(lambda x, i, c: ops.gather_patches(x, c, x.shape[2:], i), x, index(0), corners(1))
        same(lambda x, i, c: ops.scatter_patches(x, c, (1, 1, 14, 14), i), x, index(0), corners(1))
        same(lambda b, x, i, c: ops.scatter_patches_onto(b, x, c, i), x, x, index(0), corners(1))
        same(ops.class_activation_map, x, torch.ones(1, 1), index(0))
        same(lambda x: OPS.select_patches(x, 1, 3, 1, [0.3])[0], x[0])
        same(lambda x: maps(x.contiguous(memory_format=LAST)), x)
    same(chain, images)
    one = torch.ones(1)
    same(lambda x, mean: ops.gather_patches(x, corners(1), 2, mean=mean, std=mean), images, one)

    def exits(running: Tensor, logits: Tensor, active: Tensor, one: Tensor) -> Any:
        running = with_strides(running.clone(), running.stride(0))
        steps = with_strides(index(1), one.stride(0))
        return ops.exit_step(
            running, logits, active, one / 2, step=steps, temperature=one, criterion="probabilities"
        )

    same(exits, torch.rand(1, 1), torch.rand(1, 1), index(0), one)
    same(exits, torch.rand(1, 5), torch.rand(1, 5), index(0), one)


@pytest.mark.parametrize("stride", [2**31, FAR])
def test_strides_without_channels_mean_nothing(stride: int) -> None:
    features = empty((1, 0, 2, 2), (stride,) * 4)
    result = OPS.class_activation_map(features, torch.zeros(2, 0), index(1))
    assert torch.equal(result, torch.zeros(1, 2, 2))


def test_wrappers_say_it_too() -> None:
    step = MapStep("max_pool", 0, 1, kernel=(MOST, 1))
    packed = ops.pack_map_program([step], [1])
    with pytest.raises(ValueError, match="out of range"):
        ops.run_map_program([last(1, 3, 4, 4)], packed)
    layers = ops.PackedLayers(torch.zeros(4), (1, MOST, *(4, 0), *(0,) * 8))
    with pytest.raises(ValueError, match=f"must be .*2\\^31.*{MOST}"):
        ops.inverted_residuals(last(1, 4, 4, 4), layers)


@pytest.mark.parametrize("size", [2**31, 2**40])
def test_fake_kernels_take_what_the_others_refuse(size: int) -> None:
    """Shapes alone: exporting a network must not depend on the memory of this machine."""
    images = torch.empty(1, 1, size, 9, device="meta")
    assert resize(images, size, 4).shape == (1, 1, size, 4)
    assert gather(images, 1, size, 9).shape == (1, 1, size, 9)
    assert chain(images).shape == (1, 8, size - 2, 7)
    assert residuals(images, (3, 2, 16)).shape == (1, 16, size // 2, 5)
    with pytest.raises(RuntimeError, match="overflow"):
        resize(images, FAR, FAR)

"""run_map_program against the same steps in torch, and against programs that are wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from anchornet_ext import reference
from anchornet_ext._machine import using_threads
from anchornet_ext.ops.map_program import pack_map_program, run_map_program
from anchornet_ext.reference.map_program import KINDS, MapStep

RUN = torch.ops.anchornet_ext.run_map_program.default


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


class Drawing:
    """Steps that fit each other, with the shapes (C, H, W) of their values."""

    def __init__(self, data: st.DataObject, inputs: list[tuple[int, int, int]]) -> None:
        self.data = data
        self.shapes = list(inputs)
        self.steps: list[MapStep] = []

    def one(self, values: list[int]) -> int:
        return self.data.draw(st.sampled_from(values))

    def add_step(self) -> None:
        seed = len(self.steps)
        source = self.one(list(range(len(self.shapes)))[-3:])
        channels, height, width = self.shapes[source]
        kind = self.data.draw(st.sampled_from([*KINDS, "conv", "cat"]))
        relu = self.data.draw(st.booleans())
        target = len(self.shapes)
        if kind == "cat":
            like = [i for i, s in enumerate(self.shapes) if s[1:] == (height, width)]
            parts = [source, *(self.one(like) for _ in range(self.one([0, 1, 2])))]
            total = sum(self.shapes[part][0] for part in parts)
            self.steps += [MapStep("affine", p, target, relu=relu, channels=total) for p in parts]
            self.shapes.append((total, height, width))
            return
        size, weight, bias, add, options = (height, width), None, None, None, {}
        if kind == "conv":
            kernel = (self.one([1, 2, 3]), self.one([1, 3]))
            options = {
                "stride": (self.one([1, 2]), self.one([1, 3])),
                "padding": (self.one([1, 2]), 1),
                "dilation": (self.one([1, 2]), 1),
            }
            outputs = self.one([1, 16, 23, 64, 70])
            if any(n + 2 * p - d * (k - 1) < 1 for n, p, d, k in zip(
                size, options["padding"], options["dilation"], kernel, strict=True
            )):  # fmt: skip
                return
            weight = draw(outputs, channels, *kernel, seed=seed) / (channels * 9) ** 0.5
            bias = draw(outputs, seed=seed + 1) if self.data.draw(st.booleans()) else None
        elif kind == "affine":
            weight = draw(channels, seed=seed) if self.data.draw(st.booleans()) else None
            bias = draw(channels, seed=seed + 1) if self.data.draw(st.booleans()) else None
        elif "pool" in kind:
            kernel = (self.one([1, 2, 3]), self.one([2, 3]))
            padding = (self.one(list(range(kernel[0] // 2 + 1))), 1)
            if height + 2 * padding[0] < kernel[0] or width + 2 < kernel[1]:
                return
            options = {"kernel": kernel, "stride": (self.one([1, 2]), 2), "padding": padding}
        step = MapStep(kind, source, target, weight, bias, relu=relu, **options)
        maps = torch.zeros(1, channels, height, width)
        values = [torch.zeros(1, *shape) for shape in self.shapes[:source]] + [maps]
        (made,) = reference.run_map_program(values, [step], [target])
        shape = tuple(made.shape[1:])
        if kind in ("conv", "sum"):
            fitting = [i for i, s in enumerate(self.shapes) if s == shape]
            if kind == "sum" or (fitting and self.data.draw(st.booleans())):
                add = self.one(fitting)
        step = MapStep(kind, source, target, weight, bias, add, relu, **options)
        self.steps.append(step)
        self.shapes.append(shape)


def weights_in(dtype: torch.dtype, steps: list[MapStep]) -> list[MapStep]:
    return [
        replace(step, weight=step.weight.to(dtype)) if step.kind == "conv" else step
        for step in steps
    ]


@settings(deadline=None, max_examples=100)
@given(
    data=st.data(),
    batch=st.integers(0, 3),
    count=st.integers(1, 8),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_equals_the_steps_in_torch(
    data: st.DataObject, batch: int, count: int, dtype: torch.dtype
) -> None:
    num_inputs = data.draw(st.integers(1, 2))
    sizes = [(data.draw(st.sampled_from([1, 5, 48])), 4, 5) for _ in range(num_inputs)]
    drawing = Drawing(data, sizes)
    for _ in range(count):
        drawing.add_step()
    if not drawing.steps:
        return
    steps = weights_in(dtype, drawing.steps)
    inputs = [in_channels_last(draw(batch, *s, seed=i).to(dtype)) for i, s in enumerate(sizes)]
    made = list(range(len(sizes), len(drawing.shapes)))
    outputs = data.draw(st.lists(st.sampled_from(made), unique=True, min_size=1))
    program = pack_map_program(steps, outputs, len(sizes), dtype)
    got = run_map_program(inputs, program)
    expected = reference.run_map_program(inputs, steps, outputs)
    assert len(got) == len(expected)
    pretended = run_map_program([maps.to("meta") for maps in inputs], program)
    assert [(m.shape, m.stride(), m.dtype) for m in pretended] == [
        (m.shape, m.stride(), m.dtype) for m in got
    ]
    for one, other in zip(got, expected, strict=True):
        assert one.is_contiguous(memory_format=torch.channels_last)
        assert one.dtype == dtype
        if dtype == torch.float32:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
        elif one.numel():
            # What lies near the middle of two bfloat16 may go either way, and the steps after that
            # carry it on.
            error = (one.float() - other.float()).abs()
            assert error.max() <= 2e-2 * (1 + other.float().abs().max())


def residual() -> tuple[list[MapStep], list[Tensor]]:
    steps = [
        MapStep("conv", 0, 1, draw(40, 24, 3, 3) / 15, draw(40), relu=True, padding=(1, 1)),
        MapStep("conv", 1, 2, draw(24, 40, 3, 3) / 19, None, add=0, relu=True, padding=(1, 1)),
        MapStep("affine", 2, 3, draw(24), draw(24), relu=True, channels=48),
        MapStep("affine", 0, 3, channels=48),
        MapStep("average_pool", 3, 4, kernel=(2, 2), stride=(2, 2)),
        MapStep("mean", 4, 5),
        MapStep("conv", 5, 6, draw(10, 48, 1, 1), draw(10)),
    ]
    return steps, [in_channels_last(draw(3, 24, 9, 7))]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_image_does_not_depend_on_the_others(threads: int, dtype: torch.dtype) -> None:
    steps, (maps,) = residual()
    maps = maps.to(dtype)
    program = pack_map_program(weights_in(dtype, steps), [6], dtype=dtype)
    with using_threads(threads):
        (together,) = run_map_program([maps], program)
        alone = [run_map_program([one[None]], program)[0] for one in maps]
    assert torch.equal(torch.cat(alone), together)


@pytest.mark.parametrize("kind", ["affine", "sum", "max_pool", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_comes_through(kind: str, dtype: torch.dtype) -> None:
    maps = torch.tensor([float("nan"), -1.0, float("inf")], dtype=dtype).reshape(3, 1, 1, 1)
    add = 0 if kind == "sum" else None
    program = pack_map_program([MapStep(kind, 0, 1, add=add, relu=True)], [1], dtype=dtype)
    (got,) = run_map_program([maps], program)
    expected = torch.tensor([float("nan"), 0.0, float("inf")], dtype=dtype)
    torch.testing.assert_close(got.flatten(), expected, equal_nan=True)


def test_bfloat16_is_pooled_in_float32() -> None:
    # Summed in bfloat16, 1 + 2^-9 + ... would stay 1; and more channels than are summed at once.
    maps = torch.full((1, 300, 3, 11), 2**-9, dtype=torch.bfloat16)
    maps[:, :, 0, 0] = 1
    program = pack_map_program([MapStep("mean", 0, 1)], [1], dtype=torch.bfloat16)
    (got,) = run_map_program([in_channels_last(maps)], program)
    assert (got == torch.tensor((1 + 32 * 2**-9) / 33).bfloat16()).all()


@settings(deadline=None, max_examples=150)
@given(place=st.integers(0, 200), value=st.integers(-3, 90), cut=st.integers(0, 1))
def test_a_wrong_program_is_refused_or_runs(place: int, value: int, cut: int) -> None:
    steps, inputs = residual()
    program = pack_map_program(steps, [6, 2])
    code = program.code.clone()
    if place >= len(code):
        code = code[: place % len(code)]
    else:
        code[place] = value
    weights = program.weights[: len(program.weights) - 64 * cut]
    try:
        broken = replace(program, weights=weights, code=code)
        results = run_map_program(inputs, broken)
    except ValueError as error:
        message = str(error)
    else:
        assert all(len(result) == 3 for result in results)
        return
    assert "run_map_program: " in message


def test_arguments_that_do_not_fit() -> None:
    steps, (maps,) = residual()
    program = pack_map_program(steps, [6])
    with pytest.raises(TypeError, match=r"inputs must be float32, got torch\.float64"):
        run_map_program([maps.double()], program)
    with pytest.raises(TypeError, match=r"inputs must be float32, got torch\.bfloat16"):
        run_map_program([maps.bfloat16()], program)
    with pytest.raises(
        TypeError, match=r"a convolution's weight must be torch\.bfloat16, got torch"
    ):
        pack_map_program(steps, [6], dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"dtype must be float32 or bfloat16, got torch\.float16"):
        pack_map_program(steps, [6], dtype=torch.float16)
    with pytest.raises(ValueError, match=r"inputs must be \(B, C, H, W\), got \(24, 9, 7\)"):
        run_map_program([maps[0]], program)
    with pytest.raises(ValueError, match="has 1 inputs, got 2"):
        run_map_program([maps, maps], program)
    with pytest.raises(ValueError, match="step 0 needs weights"):
        run_map_program([draw(3, 900, 9, 7)], program)
    with pytest.raises(ValueError, match="step 1 cannot add value 0"):
        run_map_program([maps[:, :8]], pack_map_program([
            MapStep("affine", 0, 1), MapStep("conv", 1, 2, draw(9, 8, 1, 1), add=0)
        ], [2]))  # fmt: skip
    with pytest.raises(ValueError, match="kind must be one of conv"):
        pack_map_program([MapStep("gelu", 0, 1)], [1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a convolution must have weights, got None"):
        pack_map_program([MapStep("conv", 0, 1)], [1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype: torch.dtype) -> None:
    steps, inputs = residual()
    inputs = [maps.to(dtype) for maps in inputs]
    program = pack_map_program(weights_in(dtype, steps), [6, 3], dtype=dtype)
    arguments = (inputs, program.weights, program.parameters, program.code, program.shapes)
    torch.library.opcheck(RUN, arguments)


def test_the_sizes_of_what_is_compiled_may_be_symbolic() -> None:
    steps, (maps,) = residual()
    program = pack_map_program(steps, [6, 4])
    torch.compiler.reset()
    counter = CompileCounter()
    run = torch.compile(
        lambda maps: run_map_program([maps], program), backend=counter, fullgraph=True, dynamic=True
    )
    for batch, height, width in ((3, 9, 7), (2, 9, 7), (5, 8, 12)):
        maps = in_channels_last(draw(batch, 24, height, width))
        for one, other in zip(run(maps), run_map_program([maps], program), strict=True):
            assert torch.equal(one, other)
    assert counter.frame_count == 1

"""Whole parts of a network on small maps in one call, their weights one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from anchornet_ext import _extension
from anchornet_ext.reference.map_program import KINDS, MapStep

from ._calls import call_checked, check_cpu_maps, check_map_dtype
from .maps import pack_maps

_RUN = "anchornet_ext::run_map_program"
_NONE = -1
_LINE = 64  # bytes


@dataclass(frozen=True, eq=False)
class MapProgram:
    """Steps and their parameters as `run_map_program` reads them; see `pack_map_program`.

    Attributes:
        weights: one row, of the maps' dtype: the weights of the convolutions in the order of
            `pack_maps` and of the steps, so that the next one can be fetched while one is read.
        parameters: one row of float32: everything else.
        code: one row of int64.
        shapes: where the shapes of the results come from, for who cannot read the code's values:
            the fake kernel. Of each result the input whose size it begins with, its channels (-1:
            the input's), how many windows change that size on the way, and eight numbers for each
            of those: kernel, stride, padding and dilation of rows and columns. A kernel of 0 leaves
            a single pixel.
    """

    weights: Tensor
    parameters: Tensor
    code: Tensor
    shapes: tuple[int, ...]


def pack_map_program(
    steps: Sequence[MapStep],
    outputs: Sequence[int],
    num_inputs: int = 1,
    dtype: torch.dtype = torch.float32,
) -> MapProgram:
    """Packs the steps of a program.

    Args:
        steps: in the order in which they run.
        outputs: the values that are the results, each once.
        num_inputs: how many values are given.
        dtype: of the maps and of the convolutions' weights: float32 or bfloat16.

    Raises:
        ValueError: a step of an unknown kind, or a convolution without weights.
        TypeError: another dtype, or weights of a convolution that are not of it.
    """
    check_map_dtype("dtype", dtype)
    for step in steps:
        if step.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {step.kind!r}")
        if step.kind == "conv" and step.weight is None:
            raise ValueError("a convolution must have weights, got None")
    packed, parameters = _Row(dtype), _Row(torch.float32)
    weights = [packed.add(_packed(step, dtype)) for step in steps]
    biases = [parameters.add(step.bias) for step in steps]
    factors = [parameters.add(step.weight if step.kind == "affine" else None) for step in steps]
    num_values = max([num_inputs, *(step.target + 1 for step in steps)])
    code = [num_inputs, num_values, len(steps), len(outputs), *outputs]
    for step, weight, bias, factor in zip(steps, weights, biases, factors, strict=True):
        channels, kernel = _NONE, step.kernel
        if step.kind == "conv" and step.weight is not None:
            channels, kernel = len(step.weight), (step.weight.shape[2], step.weight.shape[3])
        code += [KINDS.index(step.kind), step.source, step.target]
        code += [_NONE if step.channels is None else step.channels, channels]
        code += [_NONE if step.add is None else step.add, int(step.relu)]
        code += [*kernel, *step.stride, *step.padding, *step.dilation]
        code += [max(weight, factor), bias]
    shapes = _shapes(steps, outputs, num_inputs)
    return MapProgram(packed.joined(), parameters.joined(), torch.tensor(code), shapes)


def run_map_program(inputs: Sequence[Tensor], program: MapProgram) -> list[Tensor]:
    """The results of a program of `pack_map_program` for small maps, on the CPU.

    Between the steps nothing is asked, allocated or waited for, and the weights of a convolution
    are fetched while the one before computes. All of it is without gradients. In bfloat16 each step
    computes in float32, its activation included, and what it makes is rounded once.

    Args:
        inputs: each (B, C, H, W) of the same B and of the program's dtype, float32 or bfloat16;
            channels_last, or it costs a copy. In what is compiled or exported B, H and W may be
            symbolic.
        program: of `pack_map_program`; its parameters may not have changed since.

    Returns:
        The outputs, (B, C, H, W) of the inputs' dtype in channels_last.

    Raises:
        ValueError: a shape or device that does not fit, or a step that does not fit what it reads.
        TypeError: an input that is not of the program's dtype.
        ImportError: the native library is missing.
    """
    for maps in inputs:
        check_cpu_maps("inputs", maps, (program.weights.dtype,))
    _extension.require()
    results: list[Tensor] = call_checked(
        torch.ops.anchornet_ext.run_map_program.default,
        [maps.contiguous(memory_format=torch.channels_last) for maps in inputs],
        program.weights,
        program.parameters,
        program.code,
        program.shapes,
    )
    return results


class _Row:
    """Tensors in one row, each at the beginning of a cache line."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._parts: list[Tensor] = []
        self._size = 0

    def add(self, tensor: Tensor | None) -> int:
        """Where it will begin, or -1 if it is None."""
        if tensor is None:
            return _NONE
        flat = tensor.detach().reshape(-1).to(self._dtype)
        flat = torch.nn.functional.pad(flat, (0, -len(flat) % (_LINE // flat.itemsize)))
        self._parts.append(flat)
        self._size += len(flat)
        return self._size - len(flat)

    def joined(self) -> Tensor:
        return torch.cat(self._parts) if self._parts else torch.empty(0, dtype=self._dtype)


def _packed(step: MapStep, dtype: torch.dtype) -> Tensor | None:
    if step.kind != "conv" or step.weight is None:
        return None
    if step.weight.dtype != dtype:
        raise TypeError(f"a convolution's weight must be {dtype}, got {step.weight.dtype}")
    return pack_maps(step.weight.detach()).weight


class _Shape(NamedTuple):
    """Where the shape of a value comes from; see `MapProgram.shapes`."""

    input: int
    channels: int
    windows: tuple[int, ...] = ()


_ONE_PIXEL = (0,) * 8


def _shapes(steps: Sequence[MapStep], outputs: Sequence[int], num_inputs: int) -> tuple[int, ...]:
    known = {value: _Shape(value, _NONE) for value in range(num_inputs)}
    for step in steps:
        # What does not fit is refused when the program runs, with the step's number.
        source = known.get(step.source, _Shape(0, _NONE))
        channels = source.channels
        if step.kind == "conv" and step.weight is not None:
            channels = len(step.weight)
        if step.channels is not None:
            channels = step.channels
        made = _Shape(source.input, channels, source.windows + _window_of(step))
        known.setdefault(step.target, made)
    row: list[int] = []
    for output in outputs:
        shape = known.get(output, _Shape(0, _NONE))
        row += [shape.input, shape.channels, len(shape.windows) // 8, *shape.windows]
    return tuple(row)


def _window_of(step: MapStep) -> tuple[int, ...]:
    """Kernel, stride, padding and dilation of a step, or nothing where it keeps the size."""
    if step.kind == "mean":
        return _ONE_PIXEL
    kernel = step.kernel
    if step.kind == "conv" and step.weight is not None:
        kernel = (step.weight.shape[2], step.weight.shape[3])
    keeps = step.stride == (1, 1) and all(
        2 * padding == dilation * (size - 1)
        for size, padding, dilation in zip(kernel, step.padding, step.dilation, strict=True)
    )
    return () if keeps else (*kernel, *step.stride, *step.padding, *step.dilation)


def _fake_run(
    inputs: Sequence[Tensor],
    weights: Tensor,
    parameters: Tensor,
    program: Tensor,
    shapes: Sequence[int],
) -> list[Tensor]:
    results: list[Tensor] = []
    at = 0
    while at < len(shapes):
        source, channels, windows = shapes[at : at + 3]
        at += 3
        maps = inputs[source]
        size = list(maps.shape[2:])
        for _ in range(windows):
            kernel, stride, padding, dilation = (shapes[at + i : at + i + 2] for i in (0, 2, 4, 6))
            at += 8
            size = [
                1 if k == 0 else (n + 2 * p - d * (k - 1) - 1) // s + 1
                for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
            ]
        made = (maps.shape[0], maps.shape[1] if channels == _NONE else channels, *size)
        results.append(
            torch.empty(
                made, dtype=maps.dtype, device=maps.device, memory_format=torch.channels_last
            )
        )
    return results


if _extension.available():
    torch.library.register_fake(_RUN, _fake_run)

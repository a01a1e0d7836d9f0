"""Whole parts of a network on small maps in one call, their weights one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anchornet_ext import _extension
from anchornet_ext.reference.map_program import KINDS, MapStep

from ._calls import call_checked, check_cpu_maps
from .maps import pack_maps

_RUN = "anchornet_ext::run_map_program"
_NONE = -1
_ALIGNED = 16  # floats in a cache line


@dataclass(frozen=True, eq=False)
class MapProgram:
    """Steps and their parameters as `run_map_program` reads them; see `pack_map_program`.

    Attributes:
        parameters: one row: the weights of the convolutions in the order of `pack_maps` and of the
            steps, so that the next one can be fetched while one is read; then everything else.
        code: one row of int64.
    """

    parameters: Tensor
    code: Tensor


def pack_map_program(
    steps: Sequence[MapStep], outputs: Sequence[int], num_inputs: int = 1
) -> MapProgram:
    """Packs the steps of a program.

    Args:
        steps: in the order in which they run.
        outputs: the values that are the results, each once.
        num_inputs: how many values are given.

    Raises:
        ValueError: a step of an unknown kind, or a convolution without weights.
    """
    for step in steps:
        if step.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {step.kind!r}")
        if step.kind == "conv" and step.weight is None:
            raise ValueError("a convolution must have weights, got None")
    row = _Row()
    weights = [row.add(_packed(step)) for step in steps]
    biases = [row.add(step.bias) for step in steps]
    factors = [row.add(step.weight if step.kind == "affine" else None) for step in steps]
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
    return MapProgram(row.joined(), torch.tensor(code))


def run_map_program(inputs: Sequence[Tensor], program: MapProgram) -> list[Tensor]:
    """The results of a program of `pack_map_program` for small maps, on the CPU.

    Between the steps nothing is asked, allocated or waited for, and the weights of a convolution
    are fetched while the one before computes. All of it is for float32 and without gradients.

    Args:
        inputs: each (B, C, H, W) of the same B; channels_last, or it costs a copy.
        program: of `pack_map_program`; its parameters may not have changed since.

    Returns:
        The outputs, (B, C, H, W) in channels_last.

    Raises:
        ValueError: a shape or device that does not fit, or a step that does not fit what it reads.
        TypeError: not float32.
        ImportError: the native library is missing.
    """
    for maps in inputs:
        check_cpu_maps("inputs", maps)
    _extension.require()
    results: list[Tensor] = call_checked(
        torch.ops.anchornet_ext.run_map_program.default,
        [maps.contiguous(memory_format=torch.channels_last) for maps in inputs],
        program.parameters,
        program.code,
    )
    return results


class _Row:
    """Tensors in one row, each at the beginning of a cache line."""

    def __init__(self) -> None:
        self._parts: list[Tensor] = []
        self._size = 0

    def add(self, tensor: Tensor | None) -> int:
        """Where it will begin, or -1 if it is None."""
        if tensor is None:
            return _NONE
        flat = tensor.detach().reshape(-1)
        flat = torch.nn.functional.pad(flat, (0, -len(flat) % _ALIGNED))
        self._parts.append(flat)
        self._size += len(flat)
        return self._size - len(flat)

    def joined(self) -> Tensor:
        return torch.cat(self._parts) if self._parts else torch.empty(0)


def _packed(step: MapStep) -> Tensor | None:
    if step.kind != "conv" or step.weight is None:
        return None
    return pack_maps(step.weight.detach()).weight


def _fake_run(inputs: Sequence[Tensor], parameters: Tensor, program: Tensor) -> list[Tensor]:
    raise NotImplementedError(
        "run_map_program cannot be compiled: the shapes of its results are in the program"
    )


if _extension.available():
    torch.library.register_fake(_RUN, _fake_run)

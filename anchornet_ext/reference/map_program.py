"""A program for small maps: steps that each make a map, or channels of one, of earlier maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Kind = Literal["conv", "affine", "sum", "max_pool", "average_pool", "mean"]
KINDS: tuple[Kind, ...] = ("conv", "affine", "sum", "max_pool", "average_pool", "mean")


@dataclass(frozen=True, eq=False)
class MapStep:
    """One step. Values are numbered: the inputs first, then each target that is new.

    Attributes:
        kind: "conv": convolution; "affine": ``x * weight + bias``, for each channel; "sum":
            ``x + add``; "max_pool", "average_pool" (padding counts); "mean": of all pixels, 1x1.
        source, target: values (B, C, H, W).
        weight: (O, C, k, l) of a convolution, (C,) of "affine", or None there.
        bias: (O,) of a convolution, (C,) of "affine", or None.
        add: a value, added before the activation, of "conv" and "sum"; or None.
        relu: whether the result goes through a ReLU.
        kernel, stride, padding, dilation: of rows and columns; of a convolution, the kernel is the
            weight's.
        channels: of the target, where other steps write more of them. All that write to one target
            follow each other in the order of its channels.
    """

    kind: Kind
    source: int
    target: int
    weight: Tensor | None = None
    bias: Tensor | None = None
    add: int | None = None
    relu: bool = False
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    channels: int | None = None


def run_map_program(
    inputs: Sequence[Tensor], steps: Sequence[MapStep], outputs: Sequence[int]
) -> list[Tensor]:
    """The values `outputs` after all steps.

    In bfloat16 each step computes in float32, its activation included, and what it makes is rounded
    once.
    """
    dtype = inputs[0].dtype
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    parts: dict[int, list[Tensor]] = {i: [value] for i, value in enumerate(inputs)}
    for step in steps:
        x = torch.cat(parts[step.source], 1).to(wide)
        out = _result(step, x)
        if step.add is not None:
            out = out + torch.cat(parts[step.add], 1).to(wide)
        out = out.relu() if step.relu else out
        parts.setdefault(step.target, []).append(out.to(dtype))
    return [torch.cat(parts[value], 1) for value in outputs]


def _result(step: MapStep, x: Tensor) -> Tensor:
    weight = None if step.weight is None else step.weight.to(x.dtype)
    bias = None if step.bias is None else step.bias.to(x.dtype)
    if step.kind == "conv":
        assert weight is not None
        return functional.conv2d(x, weight, bias, step.stride, step.padding, step.dilation)
    if step.kind == "affine":
        out = x if weight is None else x * weight[:, None, None]
        return out if bias is None else out + bias[:, None, None]
    if step.kind == "max_pool":
        return functional.max_pool2d(x, step.kernel, step.stride, step.padding)
    if step.kind == "average_pool":
        return functional.avg_pool2d(x, step.kernel, step.stride, step.padding)
    return x.mean((2, 3), keepdim=True) if step.kind == "mean" else x

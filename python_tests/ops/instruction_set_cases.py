"""What every loop with versions for several instruction sets computes, from given numbers."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import torch
from mbconv_cases import Chain
from torch import Tensor

from anchornet_ext import ops, reference

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
DTYPES = (torch.uint8, *FLOATS)
LAYOUTS = (torch.contiguous_format, torch.channels_last)

Given = dict[str, Tensor]
Named = Iterator[tuple[str, Tensor]]


def given() -> Given:
    """Drawn once: torch itself draws other numbers on other instruction sets."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def index(limit: int, *shape: int) -> Tensor:
        return torch.randint(-1, limit, shape, generator=generator)

    return {
        # Of one, three and five channels; rows of several vectors and a rest.
        **{f"images of {c}": 60 * normal(2, c, 11, 161) + 128 for c in (1, 3, 5)},
        "corners": torch.tensor([[0, 3], [2, 0], [1, 7]]),
        "mean": normal(5) / 10 + 0.5,
        "std": normal(5).abs() + 0.1,
        "features": normal(3, 77, 5, 9),
        "class weight": normal(6, 77),
        "map": normal(4, 13, 17),
        "logits": 3 * normal(5, 83),
        "running": normal(5, 83).softmax(1),
        "cells": normal(7, 3, 2, 20),
        "neighbours": index(7, 6, 9),
        "cell weight": normal(1, 37, 20, 3, 3) / 13,
        "cell bias": normal(1, 37),
        "base": normal(1, 74, 4, 3),
        "weights of base": normal(1, 74).sigmoid(),
        "slots": index(6, 1, 2, 3, 2),
        "map weight": normal(71, 77, 3, 3) / 26,
    }


def patches(numbers: Given) -> Named:
    index = torch.tensor([0, 1, 1])
    for channels, dtype, layout in itertools.product((1, 3, 5), DTYPES, LAYOUTS):
        images = numbers[f"images of {channels}"].clamp(0, 255).to(dtype)
        images = images.contiguous(memory_format=layout)
        name = f"of {channels} channels, {dtype}, {layout}"
        statistics = numbers["mean"][:channels], numbers["std"][:channels]
        for to, result in itertools.product((dtype, *FLOATS), LAYOUTS):
            mean, std = (None, None) if to == dtype else statistics
            yield (
                f"gather {name} to {to}, {result}",
                ops.gather_patches(
                    images,
                    numbers["corners"],
                    (7, 149),
                    index,
                    mean=mean,
                    std=std,
                    dtype=to,
                    memory_format=result,
                ),
            )
        if dtype != torch.uint8:
            crops = ops.gather_patches(images, numbers["corners"], (7, 149), index)
            summed = ops.scatter_patches(crops, numbers["corners"], images.shape, index)
            yield f"scatter {name}", summed
        yield f"resize {name}", ops.resize_images(images, (13, 70), dtype=torch.float32)


def maps(numbers: Given) -> Named:
    classes = torch.tensor([0, 5, 2])
    for dtype, layout in itertools.product(FLOATS, LAYOUTS):
        features = numbers["features"].to(dtype).contiguous(memory_format=layout)
        weight = numbers["class weight"].to(dtype)
        yield f"map of {dtype}, {layout}", ops.class_activation_map(features, weight, classes)
    for dtype in FLOATS:
        chosen = ops.select_patches(numbers["map"].to(dtype), 4, 95, 8, 0.3)
        yield f"selection of {dtype}", chosen.top_left


def turns(numbers: Given) -> Named:
    active = torch.arange(5)
    for dtype, criterion in itertools.product(FLOATS, ("logits", "probabilities")):
        running = numbers["running"].clone()
        logits = numbers["logits"].to(dtype)
        turn = ops.exit_step(running, logits, active, 0.4, step=2, criterion=criterion)
        yield f"sums of {dtype}, {criterion}", running
        for name, value in turn._asdict().items():
            yield f"{name} of {dtype}, {criterion}", value


def products(numbers: Given, chains: list[Chain]) -> Named:
    """Sums whose last bits depend on the instruction set."""
    weights = ops.pack_cells(numbers["cell weight"], numbers["cell bias"])
    cells = ops.convolve_cells(numbers["cells"], weights, [6], numbers["neighbours"])
    yield "cells", cells
    low, a = numbers["base"], numbers["weights of base"]
    yield "fusion", ops.fuse_cells(low, cells, numbers["slots"], a, (8, 4))
    for dtype in (torch.float32, torch.bfloat16):
        weight = ops.pack_maps(numbers["map weight"].to(dtype))
        yield f"maps of {dtype}", ops.convolve_maps(numbers["features"].to(dtype), weight)
    for n, (images, blocks) in enumerate(chains):
        yield f"chain {n}", ops.mbconv_chain(images, blocks)


def steps(numbers: Given) -> Named:
    """What a program does between its convolutions."""
    features, shift = numbers["features"], numbers["class weight"][0]
    program = [
        reference.MapStep("affine", 0, 1, shift, shift, relu=True),
        reference.MapStep("sum", 0, 2, add=1, relu=True),
        reference.MapStep("max_pool", 0, 3, kernel=(2, 3)),
        reference.MapStep("average_pool", 0, 4, kernel=(2, 3)),
        reference.MapStep("mean", 0, 5),
    ]
    for dtype in (torch.float32, torch.bfloat16):
        packed = ops.pack_map_program(program, range(1, 6), dtype=dtype)
        for index, made in enumerate(ops.run_map_program([features.to(dtype)], packed)):
            yield f"step {index} of a program in {dtype}", made.flatten()


def exact(numbers: Given) -> dict[str, Tensor]:
    """The same bits on every instruction set."""
    parts = (patches(numbers), maps(numbers), turns(numbers), steps(numbers))
    return {name: value.contiguous() for part in parts for name, value in part}


if __name__ == "__main__":
    read, chains = torch.load(Path(sys.argv[1]), weights_only=False)
    chosen = import_module("anchornet_ext._C").instruction_set()
    torch.save((chosen, exact(read), dict(products(read, chains))), Path(sys.argv[2]))

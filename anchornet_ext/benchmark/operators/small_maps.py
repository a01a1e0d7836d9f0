"""Cases of `convolve_maps` and `run_map_program`: the last stage of ResNet-50.

Its maps have 3 x 3 pixels for a patch of 95, 7 x 7 for an image of 224. Of a 3x3 kernel's
multiply-adds, as they are counted everywhere, those with the padding are a fifth to two fifths
there. The operators leave them out, so that they can be faster than the floor.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import Bottleneck

from anchornet_ext import ops, reference
from anchornet_ext.models import count_macs
from anchornet_ext.reference.map_program import MapStep

from ..harness import Case, Contenders, Options
from .case import network_cases
from .setting import OURS, patches_and_images

#: Channels of the stage before, within the stage, and of its result.
BEFORE, WITHIN, AFTER = 1024, 512, 2048
BLOCKS = 3


def convolutions(options: Options) -> Iterator[Case]:
    """Cases of `convolve_maps`: a block's 3x3, and its last 1x1 with the sum that follows."""
    for size in patches_and_images(options):
        side = -(-size // 32)
        for kernel, channels in ((3, (WITHIN, WITHIN)), (1, (WITHIN, AFTER))):
            build = partial(_convolution, kernel, channels, side)
            weights = channels[0] * channels[1] * kernel**2
            macs = weights * side**2
            yield from network_cases(
                options,
                "convolve_maps",
                size,
                build,
                read=channels[0] * side**2,
                weights=weights,
                macs=macs,
                settings={"kernel": kernel},
            )


def programs(options: Options) -> Iterator[Case]:
    """Cases of `run_map_program`: the whole stage."""
    for size in patches_and_images(options):
        side = -(-size // 16)
        macs, weights = _counts(side)
        build = partial(_program, side)
        read = BEFORE * side**2
        yield from network_cases(
            options, "run_map_program", size, build, read=read, weights=weights, macs=macs
        )


def _maps(batch: int, channels: int, side: int) -> Tensor:
    maps = torch.randn(batch, channels, side, side).relu()
    return maps.contiguous(memory_format=torch.channels_last)


def _convolution(kernel: int, channels: tuple[int, int], side: int, batch: int) -> Contenders:
    maps = _maps(batch, channels[0], side)
    add = None if kernel == 3 else _maps(batch, channels[1], side)
    module = nn.Conv2d(*channels, kernel, padding=kernel // 2).eval()
    weight, bias = module.weight.detach().clone(), module.bias
    module.to(memory_format=torch.channels_last)
    packed = ops.pack_maps(weight)
    padding = (kernel // 2, kernel // 2)

    def usual() -> Tensor:
        out: Tensor = module(maps)
        return (out if add is None else out.add_(add)).relu_()

    return {
        OURS: lambda: ops.convolve_maps(
            maps, packed, bias, padding=padding, add=add, activation="relu"
        ),
        "reference": lambda: reference.convolve_maps(
            maps, weight, bias, (1, 1), padding, (1, 1), add, activation=1
        ),
        "modules": usual,
    }


@functools.cache
def _counts(side: int) -> tuple[int, int]:
    """The stage's multiply-adds of an image, and weights."""
    stage = _stage("meta")
    return count_macs(stage, (BEFORE, side, side)), sum(p.numel() for p in stage.parameters())


def _stage(device: str) -> nn.Sequential:
    """Random weights, with batch norm folded into them."""
    with torch.device(device):
        down = nn.Sequential(nn.Conv2d(BEFORE, AFTER, 1, 2, bias=False), nn.BatchNorm2d(AFTER))
        blocks = [Bottleneck(BEFORE, WITHIN, 2, down)]
        blocks += [Bottleneck(AFTER, WITHIN) for _ in range(BLOCKS - 1)]
    stage = nn.Sequential(*blocks).eval()
    for block in blocks:
        for n in (1, 2, 3):
            conv, norm = getattr(block, f"conv{n}"), getattr(block, f"bn{n}")
            setattr(block, f"conv{n}", fuse_conv_bn_eval(conv, norm))
            setattr(block, f"bn{n}", nn.Identity())
        if block.downsample is not None:
            conv, norm = block.downsample
            block.downsample = nn.Sequential(fuse_conv_bn_eval(conv, norm))
    return stage


def _program(side: int, batch: int) -> Contenders:
    maps = _maps(batch, BEFORE, side)
    stage = _stage("cpu")
    steps, result = _steps(stage)
    packed = ops.pack_map_program(steps, [result])
    stage = stage.to(memory_format=torch.channels_last)
    return {
        OURS: lambda: ops.run_map_program([maps], packed)[0],
        "reference": lambda: reference.run_map_program([maps], steps, [result])[0],
        "modules": lambda: stage(maps),
    }


def _steps(stage: nn.Sequential) -> tuple[list[MapStep], int]:
    """The stage as a program, and the number of its result."""
    steps: list[MapStep] = []
    value = count = 0

    def add(conv: nn.Conv2d, source: int, other: int | None = None, relu: bool = True) -> int:
        nonlocal count
        count += 1
        weight = conv.weight.detach().clone()
        steps.append(
            MapStep(
                "conv",
                source,
                count,
                weight,
                conv.bias,
                add=other,
                relu=relu,
                stride=(conv.stride[0], conv.stride[1]),
                padding=(int(conv.padding[0]), int(conv.padding[1])),
            )
        )
        return count

    for block in stage.children():
        assert isinstance(block, Bottleneck)
        inner = add(block.conv2, add(block.conv1, value))
        other = value
        if block.downsample is not None:
            other = add(block.downsample[0], value, relu=False)
        value = add(block.conv3, inner, other)
    return steps, value

"""Cases of `inverted_residuals`: the features of MobileNetV3-Large, of patches and of images."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from anchornet_ext import ops, reference
from anchornet_ext.models import build_backbone, count_macs
from anchornet_ext.models.norm_folding import fold_batch_norms
from anchornet_ext.models.residual_layers import layer_of

from ..harness import Case, Contenders, Options
from ..networks import with_statistics
from .case import network_cases
from .setting import OURS, patches_and_images

BACKBONE = "mobilenet_v3_large"


def cases(options: Options) -> Iterator[Case]:
    for size in patches_and_images(options):
        macs, weights = _counts(size)
        yield from network_cases(
            options,
            "inverted_residuals",
            size,
            partial(_build, size),
            read=3 * size**2,
            weights=weights,
            macs=macs,
            mode=torch.no_grad,  # tensors of inference mode cannot be folded
        )


@functools.cache
def _counts(size: int) -> tuple[int, int]:
    """Multiply-adds of an image, and weights."""
    features = _features("meta")
    fold_batch_norms(features, (size, size))
    return count_macs(features, (3, size, size)), sum(p.numel() for p in features.parameters())


def _features(device: str) -> nn.Sequential:
    with torch.device(device):
        features = build_backbone(BACKBONE, 1).features
    assert isinstance(features, nn.Sequential)
    return features


def _build(size: int, batch: int) -> Contenders:
    images = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    features = with_statistics(_features("cpu"), size)
    fold_batch_norms(features, (size, size))
    features.to(memory_format=torch.channels_last)
    layers = [layer_of(module) for module in features.children()]
    known = [layer for layer in layers if layer is not None]
    if len(known) < len(layers):
        raise RuntimeError(f"{len(layers) - len(known)} modules of {BACKBONE} are no layers")
    packed = ops.pack_layers(known)
    return {
        OURS: lambda: ops.inverted_residuals(images, packed),
        "reference": lambda: reference.inverted_residuals(images, known),
        "modules": lambda: features(images),
    }

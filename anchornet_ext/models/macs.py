"""The cost of a network in multiply-adds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from anchornet_ext._meta import meta_images, meta_twin


def count_macs(module: nn.Module, input_size: Sequence[int]) -> int:
    """Multiply-adds (MACs) of one image through `module` in evaluation mode.

    Counted are the products of convolutions, linear layers and attention, which is what papers in
    this field print as "FLOPs": 4.09 G for ResNet-50 and 4.29 G for DenseNet-201 at 224x224,
    60.54 M for AnchorNet. Left out are batch norm, activations, pooling and elementwise arithmetic,
    the scaling by squeeze-and-excitation's gates among it.

    Nothing is computed: a copy without weights runs on the meta device, and `module` keeps its
    mode, its hooks and its tensors.

    Args:
        module: maps (B, C, H, W) to anything.
        input_size: (C, H, W) of one image.

    Raises:
        ValueError: `input_size` is not three positive numbers, or `module` does not take images of
            that size (its own error is chained).
        TypeError: `module` is no plain module.
    """
    if len(input_size) != 3 or any(int(n) != n or n < 1 for n in input_size):
        raise ValueError(f"input_size must be (C, H, W), all positive, got {tuple(input_size)}")
    channels, height, width = (int(n) for n in input_size)
    twin = meta_twin(module)
    images = meta_images(twin, (1, channels, height, width))
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            twin(images)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(
            f"{type(twin).__name__} does not take images of {channels}x{height}x{width}: "
            f"{reason[0]}"
        ) from error
    flops: int = counter.get_total_flops()
    return flops // 2

"""The mean of each map by the kernel that takes the least time for it on a CPU.

PyTorch's `adaptive_avg_pool2d` takes a mean by its machinery for reductions of any kind, whose code
has left the cache since the last image: 0.07 ms for one of 95x95 in a MobileNet, whose whole pass
takes 1.3. `avg_pool2d` with a window as large as the map takes 0.02; in bfloat16 it takes less for
batches of any size, too.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .native_calls import runs_natively, wants_gradient


def pack_pools(network: nn.Module) -> int:
    """Makes every plain `nn.AdaptiveAvgPool2d` to one pixel in `network` a `MeanPool2d`, in place.

    Returns:
        How many there were.
    """
    found = [m for m in network.modules() if type(m) is nn.AdaptiveAvgPool2d and makes_one_pixel(m)]
    for module in found:
        module.__class__ = MeanPool2d  # with its hooks and places
    return len(found)


def makes_one_pixel(pool: nn.AdaptiveAvgPool2d) -> bool:
    return pool.output_size in (1, (1, 1))


class MeanPool2d(nn.AdaptiveAvgPool2d):
    """`nn.AdaptiveAvgPool2d` for inference on a CPU, with the same results up to rounding."""

    def forward(self, input: Tensor) -> Tensor:
        if not (
            makes_one_pixel(self)
            and runs_natively(input)
            and input.dim() == 4
            and input.numel() > 0
            and not wants_gradient(input)
            and input.is_contiguous(memory_format=torch.channels_last)
        ):
            return super().forward(input)
        return functional.avg_pool2d(input, (input.shape[2], input.shape[3]))


#: What takes the mean of each map, if `makes_one_pixel` says so.
ADAPTIVE_POOLS = (nn.AdaptiveAvgPool2d, MeanPool2d)

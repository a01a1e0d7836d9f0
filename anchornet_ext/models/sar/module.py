"""The SAR module (Fig. 2): base branch, refinement branch, fusion, and the block that merges."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .blocks import Family, Layer, Shape
from .grid import Grid
from .region_selection import RegionSelector

#: Channels of the fusion's inner layer: the features' over this, but not below 8.
FUSION_REDUCTION = 16

#: Logits (L, B, 2, G, rows, columns) to masks (L, B, G, rows, columns).
Choose = Callable[[Tensor], Tensor]


class ModuleOptions(NamedTuple):
    """What a SAR module can be told, by the paper's names.

    Attributes:
        groups: G, channel groups of the refinement branch, each with its own masks.
        stride: s, by which the base branch is smaller: a power of 2.
        alpha: by which the base branch has fewer channels.
        beta: by which the refinement branch has more.
        cells: K; the map is cut into at most K x K cells.
    """

    groups: int = 2
    stride: int = 2
    alpha: int = 2
    beta: int = 1
    cells: int = 7


class Fusion(nn.Module):
    """Eq. 5: y = a * base + (1 - a) * refined, with one weight in (0, 1) for each channel.

    The weights come from the means of both branches, through two linear layers.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(8, channels // FUSION_REDUCTION)
        self.squeeze = nn.Linear(channels, inner)
        self.excite = nn.Linear(inner, channels)

    def weights(self, means: Tensor) -> Tensor:
        """The sum of both branches' means (B, C) to a (B, C)."""
        weights: Tensor = self.excite(nn.functional.relu(self.squeeze(means)))
        return torch.sigmoid(weights)

    def forward(self, base: Tensor, refined: Tensor) -> Tensor:
        """Base (B, C, h, w), upsampled here, and refined (B, C, H, W) to (B, C, H, W)."""
        a = self.weights(base.mean((2, 3)) + refined.mean((2, 3)))[:, :, None, None]
        whole = nn.functional.interpolate(base, size=refined.shape[2:], mode="nearest")
        return torch.lerp(refined, whole, a)


class SARModule(nn.Module):
    """L dual blocks, whose two branches are fused, and then one ordinary block.

    Args:
        family: of the blocks.
        inputs: C_0, channels of the input.
        channels: C of the stage.
        blocks: L, how many blocks both branches have.
        merge_stride: of the block that merges; 2 makes the map for the next stage.
        options: see `ModuleOptions`.

    Raises:
        ValueError: channels that do not divide as the options ask.
    """

    def __init__(
        self,
        family: Family,
        inputs: int,
        channels: int,
        blocks: int,
        merge_stride: int,
        options: ModuleOptions,
    ) -> None:
        super().__init__()
        self.options = options
        groups, alpha = options.groups, options.alpha
        wide = channels * options.beta
        for name, count in (("input", inputs), ("refinement", wide)):
            if count % groups:
                raise ValueError(f"{count} {name} channels do not divide into {groups} groups")
        if channels % alpha:
            raise ValueError(f"{channels} channels cannot be divided by alpha = {alpha}")
        narrow = channels // alpha
        base = [Shape(inputs if n == 0 else narrow, narrow) for n in range(blocks)]
        base = [
            s._replace(stride=t)
            for s, t in zip(base, _strides(options.stride, blocks), strict=True)
        ]
        self.base = nn.ModuleList(family.build(s) for s in base)
        self.refine = nn.ModuleList(
            family.build(Shape(inputs if n == 0 else wide, wide, groups=groups))
            for n in range(blocks)
        )
        self.selectors = nn.ModuleList(RegionSelector(narrow, groups) for _ in range(blocks))
        # 1x1 before upsampling by nearest neighbour is the same as after it, for 1 / s^2 the cost.
        self.align = Layer(narrow, wide, 1, activation="none")
        self.fusion = Fusion(wide)
        self.merge = family.build(Shape(wide, channels, merge_stride))

    def grid(self, x: Tensor) -> Grid:
        """Of the refinement branch for an input (B, C_0, H, W)."""
        return Grid.over(x.shape[2], x.shape[3], self.options.cells)

    def run_base(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The base branch of (B, C_0, H, W).

        Returns:
            base (B, beta C, h, w), still small, and the masks' logits of all blocks
            (L, B, 2, G, rows, columns).
        """
        grid = self.grid(x)
        logits = []
        for block, selector in zip(self.base, self.selectors, strict=True):
            x = block(x)
            logits.append(selector(x, grid))
        return self.align(x), torch.stack(logits)

    def forward(self, x: Tensor, choose: Choose) -> tuple[Tensor, Tensor]:
        """Runs both branches whole, the refinement branch masked.

        Args:
            x: (B, C_0, H, W).
            choose: makes masks of logits.

        Returns:
            (B, C, H', W') and the masks (L, B, G, rows, columns), as `choose` made them.
        """
        grid = self.grid(x)
        base, logits = self.run_base(x)
        masks = choose(logits)
        for block, mask in zip(self.refine, masks, strict=True):
            x = block(x, grid.spread(mask.to(x.dtype)))
        y: Tensor = self.merge(self.fusion(base, x))
        return y, masks


def _strides(total: int, blocks: int) -> list[int]:
    """The strides of the base's blocks: 2 for the first ones, until the product is `total`.

    With one stride of 4 in place of two of 2, s = 4 would cost 8 % less than published.
    """
    if total < 2 or total & (total - 1):
        raise ValueError(f"the stride of the base branch must be 2, 4, 8, ..., got {total}")
    halvings = total.bit_length() - 1
    strides = [2 if n < halvings else 1 for n in range(blocks)]
    strides[-1] *= 2 ** max(0, halvings - blocks)
    return strides

"""Which regions are refined: the mask generator and its discrete decisions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .blocks import Layer
from .grid import Grid

#: Channels of the generator's 3x3 convolution. The paper says "much smaller than those in the
#: backbone"; with 16 the costs come closest to its tables.
MASK_CHANNELS = 16

#: How far "refine" is ahead of "skip" at first, in log-odds: at test every cell is refined then,
#: and of training's noisy decisions 95 % are.
INITIAL_LOGIT = 3.0


class RegionSelector(nn.Module):
    """Eq. 2: 3x3 convolution, batch norm, ReLU, average pooling to the cells, 1x1 convolution.

    Args:
        channels: of the base branch, whose features decide.
        groups: G, the channel groups that are decided about.
    """

    def __init__(self, channels: int, groups: int, width: int = MASK_CHANNELS) -> None:
        super().__init__()
        self.groups = groups
        self.reduce = Layer(channels, width, 3)
        self.decide = nn.Conv2d(width, 2 * groups, 1)

    def start_with_everything(self) -> None:
        """Sets the decisions so that every region is refined, whatever the features are."""
        nn.init.normal_(self.decide.weight, std=0.01)
        assert self.decide.bias is not None
        with torch.no_grad():
            self.decide.bias[: self.groups] = 0
            self.decide.bias[self.groups :] = INITIAL_LOGIT

    def forward(self, base: Tensor, grid: Grid) -> Tensor:
        """Base features (B, C, h, w) to logits (B, 2, G, rows, columns): skip, refine."""
        pooled = nn.functional.adaptive_avg_pool2d(self.reduce(base), (grid.rows, grid.columns))
        decisions: Tensor = self.decide(pooled)  # (B, 2 G, rows, columns)
        return decisions.view(len(base), 2, self.groups, grid.rows, grid.columns)


def decide(logits: Tensor) -> Tensor:
    """The decisions at test: the larger of the two logits; an exact tie is not refined.

    Args:
        logits: (..., B, 2, G, rows, columns): skip, refine.

    Returns:
        (..., B, G, rows, columns) bool.
    """
    skip, refine = logits.unbind(-4)
    return refine > skip


def sample(logits: Tensor, temperature: float, generator: torch.Generator | None = None) -> Tensor:
    """The decisions in training: straight-through Gumbel softmax (Eq. 8 and 9).

    Args:
        logits: (..., B, 2, G, rows, columns), unnormalised log-probabilities of skip and refine.
        temperature: tau, of the gradient alone; the smaller, the closer it is to the step's.
        generator: of the noise, on the device of the logits; None is torch's global one.

    Returns:
        (..., B, G, rows, columns) in the dtype of the logits, exactly 0 or 1, with the gradient of
        the softmax.

    Raises:
        ValueError: the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    # In float32 at least: in half precision the noise would be cut off.
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    noise = torch.empty_like(wide).exponential_(generator=generator).log().neg()
    skip, refine = (wide + noise).unbind(-4)
    soft = torch.sigmoid((refine - skip) / temperature)
    hard = (refine > skip).to(soft.dtype)
    # In these brackets the value stays exactly 0 or 1.
    return (hard + (soft - soft.detach())).to(logits.dtype)

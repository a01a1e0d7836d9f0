"""The cells that a feature map is divided into, and masks over them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Grid(NamedTuple):
    """A map of height x width pixels cut into rows x columns cells of one size.

    Where the sides are no multiples of the cells', the last cells reach beyond the map.
    """

    height: int
    width: int
    cell_height: int
    cell_width: int

    @classmethod
    def over(cls, height: int, width: int, cells: int) -> Grid:
        """The grid of at most `cells` x `cells` (the paper's K x K) over a map.

        Raises:
            ValueError: a side or `cells` is below 1.
        """
        if min(height, width, cells) < 1:
            raise ValueError(
                f"a grid needs a map and cells of at least 1, got {height}x{width} and {cells}"
            )
        return cls(height, width, -(-height // cells), -(-width // cells))

    @property
    def rows(self) -> int:
        return -(-self.height // self.cell_height)

    @property
    def columns(self) -> int:
        return -(-self.width // self.cell_width)

    @property
    def pixels(self) -> int:
        """Of a cell."""
        return self.cell_height * self.cell_width

    @property
    def is_ragged(self) -> bool:
        """Whether the last cells reach beyond the map."""
        return bool(self.height % self.cell_height or self.width % self.cell_width)

    def spread(self, masks: Tensor) -> Tensor:
        """Masks over the cells (..., rows, columns) to masks over the pixels (..., H, W)."""
        *batch, rows, columns = masks.shape
        whole = masks[..., :, None, :, None].expand(
            *batch, rows, self.cell_height, columns, self.cell_width
        )
        whole = whole.reshape(*batch, rows * self.cell_height, columns * self.cell_width)
        return whole[..., : self.height, : self.width]


def apply_mask(features: Tensor, mask: Tensor) -> Tensor:
    """Features (B, C, H, W) of G channel groups times the groups' masks (B, G, H, W).

    G must divide C; the groups are C / G consecutive channels each (Eq. 3).
    """
    batch, channels, height, width = features.shape
    groups = mask.shape[1]
    if groups == 1:
        return features * mask
    shares = features.view(batch, groups, channels // groups, height, width)
    return (shares * mask[:, :, None]).flatten(1, 2)

"""SAR for inference: only the selected cells of the refinement branches are computed."""

from __future__ import annotations

import copy
from typing import Any, get_args

import torch
from torch import Tensor, nn

from anchornet_ext.models.norm_folding import FoldedNorms, fold_batch_norms
from anchornet_ext.models.tuning import TunedNetwork
from anchornet_ext.ops import fuse_cells

from .blocks import Block
from .execution import Execution, kind_of, runs_on_maps
from .grid import Grid
from .map_block import MapBlock
from .module import Choose, SARModule
from .network import SARNetwork
from .region_selection import decide
from .selection import BlockCells, cells_of_map, select_cells
from .sparse_block import SparseBlock


class SparseSAR(nn.Module):
    """A SAR network in evaluation, with the results of `network` up to rounding.

    Batch norms are folded and weights are in channels_last. All blocks' masks of a module come from
    its base branch, so they are known before the refinement branch begins: its cells are gathered
    once, go through all blocks as cells, and are put back with the fusion (Fig. 3). Where so many
    cells are selected that masking whole maps is faster, that is done instead.

    Args:
        network: whose weights are copied.
        compile: run the dense parts, the base branches among them, through `torch.compile`; see
            `models.tuning.tune`.
        dtype: of the weights and the computation; None keeps the network's.
        execution: how refinement branches run: on selected "cells", on masked "maps", or, "auto",
            on whichever is expected to be faster for the masks (see `execution.runs_on_maps`).

    Raises:
        ValueError: another execution.
    """

    def __init__(
        self,
        network: SARNetwork,
        *,
        compile: bool = False,
        dtype: torch.dtype | None = None,
        execution: Execution = "auto",
    ) -> None:
        super().__init__()
        if execution not in get_args(Execution):
            raise ValueError(
                f"execution must be one of {', '.join(get_args(Execution))}, got {execution!r}"
            )
        copied = copy.deepcopy(network)
        # Of any size, since all convolutions are padded; small, since a run is watched.
        norms = fold_batch_norms(copied, (32, 32))
        if norms.kept:
            raise ValueError(f"batch norms are left that cannot be folded: {', '.join(norms.kept)}")
        modules = [module for module in copied.sar_modules if isinstance(module, SARModule)]
        starts: list[nn.Module] = [copied.stem, *(module.merge for module in modules[:-1])]
        self.starts = nn.ModuleList(
            _tuned(_Start(start, module), norms, compile, dtype)
            for start, module in zip(starts, modules, strict=True)
        )
        self.refinements = nn.ModuleList(
            SparseRefinement(module, dtype, execution) for module in modules
        )
        self.end = _tuned(_End(modules[-1].merge, copied), norms, compile, dtype)
        self.num_classes = network.num_classes
        self.cells = network.options.cells
        self.train(False)

    def train(self, mode: bool = True) -> SparseSAR:
        """Stays in evaluation mode: with its batch norms gone, it cannot train."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) to logits (B, n)."""
        return self.run(images)[0]

    @torch.no_grad()
    def run(self, images: Tensor, choose: Choose = decide) -> tuple[Tensor, list[Tensor]]:
        """As `SARNetwork.run`: logits (B, n) and the masks, of which `SARCost` makes costs."""
        x, masks = images, []
        for start, refinement in zip(self.starts, self.refinements, strict=True):
            entered, base, logits = start(x)
            mask = choose(logits)
            masks.append(mask)
            x = refinement(entered, base, mask)
        result: Tensor = self.end(x)
        return result, masks


class SparseRefinement(nn.Module):
    """The refinement branch and the fusion of a module whose batch norms are folded."""

    def __init__(self, module: SARModule, dtype: torch.dtype | None, execution: Execution) -> None:
        super().__init__()
        groups = module.options.groups
        blocks = [block for block in module.refine if isinstance(block, Block)]
        self.blocks = nn.ModuleList(
            SparseBlock(block, groups) for block in blocks if execution != "maps"
        )
        self.map_blocks = nn.ModuleList(MapBlock(block) for block in blocks if execution != "cells")
        self.fusion = copy.deepcopy(module.fusion)
        self.cells = module.options.cells
        self.execution = execution
        self.kind = kind_of(blocks, groups)
        self.requires_grad_(False)
        if dtype is not None:
            self.to(dtype)

    def forward(self, x: Tensor, base: Tensor, masks: Tensor) -> Tensor:
        """The fused map (B, C', H, W).

        Args:
            x: (B, C, H, W), the input of both branches.
            base: (B, C', h, w), the base branch's output.
            masks: (L, B, G, rows, columns).
        """
        grid = Grid.over(x.shape[2], x.shape[3], self.cells)
        on_maps = self.execution == "maps"
        if self.execution == "auto":
            on_maps = runs_on_maps(self.kind, x, masks, grid)
        return (self._on_maps if on_maps else self._on_cells)(x, base, masks, grid)

    def _on_maps(self, x: Tensor, base: Tensor, masks: Tensor, grid: Grid) -> Tensor:
        for block, pixels in zip(self.map_blocks, grid.spread(masks.to(x.dtype)), strict=True):
            assert isinstance(block, MapBlock)
            x = block.run(x, pixels)
        fused: Tensor = self.fusion(base, x)
        return fused

    def _on_cells(self, x: Tensor, base: Tensor, masks: Tensor, grid: Grid) -> Tensor:
        selected = select_cells(masks)
        cells = cells_of_map(x, selected[0], grid)
        for block, own in zip(self.blocks, selected, strict=True):
            assert isinstance(block, SparseBlock)
            cells = block.run(cells, own, grid)
        last = selected[-1]
        means = torch.add(
            base.mean((2, 3)), _sums(cells, last), alpha=1 / (grid.height * grid.width)
        )
        a = self.fusion.weights(means)
        slots = last.slots.transpose(0, 1)  # (B, G, rows, columns)
        return fuse_cells(base, cells, slots, a, (grid.height, grid.width))


def _sums(cells: Tensor, selected: BlockCells) -> Tensor:
    """The sums over the map of what lies in its cells: (B, C)."""
    groups, batch, _, _ = selected.slots.shape
    share = cells.shape[3]
    sums = cells.new_zeros(groups * batch, share)
    sums.index_add_(0, selected.owner, cells.sum((1, 2)))
    return sums.view(groups, batch, share).transpose(0, 1).reshape(batch, groups * share)


class _Start(nn.Module):
    """What runs densely before a refinement branch can begin."""

    def __init__(self, before: nn.Module, module: SARModule) -> None:
        super().__init__()
        self.before = before
        # Without what it does not run, whose weights would be kept, and compiled, in vain.
        self.module = copy.copy(module)
        self.module._modules = dict(module._modules)
        for name in ("refine", "fusion", "merge"):
            del self.module._modules[name]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        entered = self.before(x)
        base, logits = self.module.run_base(entered)
        return entered, base, logits


class _End(nn.Module):
    def __init__(self, merge: nn.Module, network: SARNetwork) -> None:
        super().__init__()
        self.merge = merge
        self.tail = network.tail
        self.classifier = network.classifier

    def forward(self, x: Tensor) -> Any:
        return self.classifier(self.tail(self.merge(x)).mean((2, 3)))


def _tuned(
    part: nn.Module, norms: FoldedNorms, compile: bool, dtype: torch.dtype | None
) -> TunedNetwork:
    return TunedNetwork(part, norms, compile=compile, dtype=dtype)

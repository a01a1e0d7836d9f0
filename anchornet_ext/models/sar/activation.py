"""A network whose masks select a wanted share of the cells, trained or not."""

from __future__ import annotations

import torch
from torch import Tensor

from .network import SARNetwork
from .region_selection import RegionSelector, decide


@torch.no_grad()
def set_activation(network: SARNetwork, images: Tensor, rate: float) -> None:
    """Shifts the decisions so that, on these images, each block refines `rate` of each group.

    Which cells they are stays the network's choice: those that it wants most. For measuring costs
    and times at a given activation, and for another trade-off than a network was trained for.

    Args:
        network: changed in place, in evaluation mode here, its mode kept.
        images: (B, 3, H, W), normalised.
        rate: in [0, 1]; met up to ties and the number of cells.

    Raises:
        ValueError: a rate outside of [0, 1], or no images.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate must be in [0, 1], got {rate}")
    if len(images) == 0:
        raise ValueError("there must be at least one image")
    training = network.training
    network.eval()
    selectors = iter([m for m in network.modules() if isinstance(m, RegionSelector)])

    def shift(logits: Tensor) -> Tensor:
        # One block's decisions change nothing of the base branches, so one pass does for a module;
        # what comes after it sees the masks as they will be.
        skip, refine = logits.unbind(-4)
        ahead = (refine - skip).float()  # (L, B, G, rows, columns)
        for gaps, block in zip(ahead, logits, strict=True):
            selector = next(selectors)
            order = (
                gaps.transpose(0, 1).flatten(1).sort(dim=1, descending=True).values
            )  # (G, cells)
            wanted = round(rate * order.shape[1])
            above = order[:, max(0, wanted - 1)] if wanted else order[:, 0] + 2
            below = (
                order[:, min(wanted, order.shape[1] - 1)]
                if wanted < order.shape[1]
                else (order[:, -1] - 2)
            )
            threshold = ((above + below) / 2).to(block.dtype)  # (G,)
            assert selector.decide.bias is not None
            selector.decide.bias[: selector.groups] += threshold
            block[:, 0] += threshold[:, None, None]
        return decide(logits)

    network.run(images, shift)
    network.train(training)

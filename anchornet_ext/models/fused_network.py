"""What runs in the place of a tuned network on the CPU: its graph with operations fused."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .graph_fusion import fuse
from .graph_tracing import hooks_of
from .packed_convolutions import runs_natively


class FusedNetwork:
    """The fused graph of a network, and whether it may stand in for it.

    The way through the network is that of the time when this was made. Weights may change, hooks
    may come: with hooks the network runs itself. Modules may not be exchanged.
    """

    def __init__(self, network: nn.Module) -> None:
        self._graph = fuse(network)
        #: The modules' own dictionaries of hooks.
        self._hooks = [hooks for module in network.modules() for hooks in hooks_of(module)]

    def takes(self, images: Tensor) -> bool:
        """Whether the graph gives for `images`, without gradients, what the network would."""
        return self._graph is not None and runs_natively(images) and not any(self._hooks)

    def __call__(self, images: Tensor) -> Any:
        assert self._graph is not None
        return self._graph(images)

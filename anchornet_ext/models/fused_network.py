"""What runs in the place of a tuned network on the CPU: its graph with operations fused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from ._structure import HOOKS_OF_ALL
from .graph_fusion import FusedConvolution, fuse
from .graph_tracing import hooks_of, module_of
from .map_lowering import Programs, Recorder, lower
from .packed_convolutions import PackedConv2d, has_fast_kernels, runs_natively

#: Larger batches keep oneDNN's convolutions busy, and calls matter less to them: of 32 images the
#: fused graph takes 1 to 5 % longer than the modules one by one, as oneDNN adds a residual slowly.
_LARGEST_LOWERED = 8
#: So many pixels of all images together; what comes to more is for large maps as well.
_MOST_PIXELS = 1 << 17
#: A caller with images of ever new sizes is not to fill the memory with graphs.
_MOST_SHAPES = 32


class FusedNetwork:
    """The fused graph of a network, and whether it may stand in for it.

    It takes small batches, by programs for small maps, which are made for each size on the first
    batch.

    The way through the network is that of the time when this was made. Weights may change, hooks
    may come: with hooks the network runs itself. Modules may not be exchanged.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        """`dtype`: of the images that it will be given."""
        self._graph = fuse(network)
        #: How many images it should get at once, if that makes a difference.
        self.best_batch = _LARGEST_LOWERED if _has_many_norms(self._graph, dtype) else None
        #: The modules' own dictionaries of hooks, and those of all modules.
        own = [hooks for module in network.modules() for hooks in hooks_of(module)]
        self._hooks = [*own, *HOOKS_OF_ALL]
        #: By the shape of the images; None where no program was worth it.
        self._lowered: dict[tuple[int, ...], fx.GraphModule | None] = {}
        self._programs: Programs = {}

    def takes(self, images: Tensor) -> bool:
        """Whether the graph is for `images`, and gives what the network would without gradients."""
        return (
            self._graph is not None
            and _may_be_lowered(images)
            and runs_natively(images)
            and not any(self._hooks)
        )

    def __call__(self, images: Tensor) -> Any:
        assert self._graph is not None
        shape = tuple(images.shape)
        if shape not in self._lowered:
            if len(self._lowered) >= _MOST_SHAPES:
                return self._graph(images)
            recorder = Recorder(self._graph, images.dtype)
            recorder.run(images)
            self._lowered[shape] = lower(self._graph, recorder.shapes, self._programs, images.dtype)
        # The first time as well, so that the same images give the same bits.
        return (self._lowered[shape] or self._graph)(images)


def _has_many_norms(graph: fx.GraphModule | None, dtype: torch.dtype) -> bool:
    """Whether batch norms that are no part of a convolution take a good part of the time.

    In a program they, and concatenations, are no ways of their own through the memory: of 95 x 95
    pixels, a DenseNet takes three quarters of the time for eight images that it takes for each of
    32, which are too many for programs.
    """
    if graph is None or not has_fast_kernels(dtype):
        return False
    modules = [module_of(graph, node) for node in graph.graph.nodes]
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in modules)
    convolutions = sum(isinstance(module, PackedConv2d | FusedConvolution) for module in modules)
    return 3 * norms >= convolutions > 0


def _may_be_lowered(images: Tensor) -> bool:
    return (
        images.dim() == 4
        and 0 < len(images) <= _LARGEST_LOWERED
        and images.shape[0] * images.shape[2] * images.shape[3] <= _MOST_PIXELS
        and has_fast_kernels(images.dtype)
    )

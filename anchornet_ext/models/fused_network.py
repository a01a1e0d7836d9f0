"""What runs in the place of a tuned network on the CPU: its graph with operations fused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from anchornet_ext import _extension

from ._structure import HOOKS_OF_ALL, Contents
from .graph_fusion import fuse
from .graph_tracing import hooks_of, module_of
from .map_lowering import Programs, Recorder, convolution_of, lower
from .native_calls import has_fast_kernels, has_map_kernels, runs_natively
from .packed_convolutions import PackedConv2d
from .residual_runs import FusedSequential
from .whole_network import WholeNetwork

#: Larger batches keep oneDNN's convolutions busy, and calls matter less to them: the fused
#: graph takes longer than the modules one by one, as oneDNN adds a residual slowly
#: (docs/decisions.md).
_LARGEST_LOWERED = 8
#: So many pixels of all images together; what comes to more is for large maps as well.
_MOST_PIXELS = 1 << 17
#: Where oneDNN's convolutions are the faster ones, and only calls and batch norms are to be gained.
_MOST_PIXELS_FOR_NORMS = 1 << 15
#: A caller with images of ever new sizes is not to fill the memory with graphs.
_MOST_SHAPES = 32


class FusedNetwork:
    """The fused graph of a network, and whether it may stand in for it.

    It takes small batches, by programs for small maps, which are made for each size on the first
    batch.

    The way through the network is that of the time when this was made. Weights may change, hooks
    may come: with hooks the network runs itself. Whether modules were exchanged, it can tell.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        """`dtype`: of the images that it will be given."""
        self._graph = _graph_of(network, dtype)
        #: The network as one operator, which takes batches of any size.
        self.whole = WholeNetwork(network)
        #: How many images it should get at once, if that makes a difference.
        self.best_batch = _LARGEST_LOWERED if _is_best_in_few(self._graph, dtype) else None
        self._dtype = dtype
        self._most_pixels = _most_pixels(self._graph, dtype)
        #: Whether runs of its blocks are one operator each, for batches of any size.
        self._has_blocks = dtype == torch.float32 and self.whole.has_blocks
        #: The modules' own dictionaries of hooks, and those of all modules.
        own = [hooks for module in network.modules() for hooks in hooks_of(module)]
        self._hooks = [*own, *HOOKS_OF_ALL]
        modules = [module._modules for module in _traced_modules(network)]
        self._modules = Contents(modules) if _extension.available() else None
        #: By the shape of the images; None where no program was worth it.
        self._lowered: dict[tuple[int, ...], fx.GraphModule | None] = {}
        self._programs: Programs = {}

    def is_of_these_modules(self) -> bool:
        """Whether the network still has the modules that it had, none exchanged, added or gone."""
        return self._modules is None or self._modules.are_as_they_were()

    def takes(self, images: Tensor) -> bool:
        """Whether the graph is for `images`, and gives what the network would without gradients."""
        return (
            self._graph is not None
            and images.dtype == self._dtype
            and _may_be_lowered(images, self._most_pixels)
            and runs_natively(images)
            and not any(self._hooks)
        )

    def is_faster_than_compiled(self, images: Tensor) -> bool:
        """Whether the network takes less time by this package's operators than by code that
        PyTorch compiles, this graph or the modules themselves: docs/decisions.md has the figures.
        """
        return self._has_blocks or self.best_batch is not None or self.takes(images)

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


def _traced_modules(network: nn.Module) -> list[nn.Module]:
    """All modules but those within a `FusedSequential`, which looks after them itself."""
    found: list[nn.Module] = []
    waiting = [network]
    while waiting:
        module = waiting.pop()
        found.append(module)
        if not isinstance(module, FusedSequential):
            waiting += module.children()
    return found


def _graph_of(network: nn.Module, dtype: torch.dtype) -> fx.GraphModule | None:
    """The fused graph, where it is faster than the modules.

    In bfloat16 it is not with depthwise convolutions, which leave little between them for programs:
    it took up to 7 % longer. In float32 blocks with such are one operator.
    """
    graph = fuse(network)
    if graph is None or dtype != torch.bfloat16:
        return graph
    return (
        None if any(1 < conv.groups == conv.in_channels for conv in _convolutions(graph)) else graph
    )


def _is_best_in_few(graph: fx.GraphModule | None, dtype: torch.dtype) -> bool:
    """Whether each image takes less time by programs, for few of them, than in a large batch.

    In float32 where batch norms that are no part of a convolution take a good part of the time: in
    a program they, and concatenations, are no ways of their own through the memory. Of 95 x 95
    pixels, a DenseNet takes three quarters of the time for eight images that it takes for each of
    32, which are too many for programs. In bfloat16 wherever all convolutions can be in a program:
    five to twenty per cent less for ResNets.
    """
    if graph is None or not has_fast_kernels(dtype):
        return False
    convolutions = _convolutions(graph)
    if dtype == torch.bfloat16:
        return len(convolutions) > 0 and all(conv.groups == 1 for conv in convolutions)
    return _has_many_norms(graph)


def _most_pixels(graph: fx.GraphModule | None, dtype: torch.dtype) -> int:
    """Of all images together, so that programs are the faster."""
    if has_fast_kernels(dtype):
        return _MOST_PIXELS
    may_pay = has_map_kernels(dtype) and graph is not None and _has_many_norms(graph)
    return _MOST_PIXELS_FOR_NORMS if may_pay else 0


def _has_many_norms(graph: fx.GraphModule) -> bool:
    """Whether batch norms that are no part of a convolution take a good part of the time."""
    norms = sum(isinstance(module_of(graph, n), nn.BatchNorm2d) for n in graph.graph.nodes)
    return 3 * norms >= len(_convolutions(graph)) > 0


def _convolutions(graph: fx.GraphModule) -> list[PackedConv2d]:
    found = [convolution_of(module_of(graph, node)) for node in graph.graph.nodes]
    return [conv for conv in found if conv is not None]


def _may_be_lowered(images: Tensor, most_pixels: int) -> bool:
    return (
        images.dim() == 4
        and 0 < len(images) <= _LARGEST_LOWERED
        and images.shape[0] * images.shape[2] * images.shape[3] <= most_pixels
    )

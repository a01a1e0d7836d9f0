"""Networks that are layers one after the other, from images to logits, as one call of the operator
(`ops.inverted_residuals`).

Between the calls of a network's parts are Python, torch's ways to an operator and a pool of its
own, whose code has left the processor's caches since the image before: a tenth of the time of one
image of 95x95 in a MobileNet, and of a batch of 32 some hundredths.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from anchornet_ext.ops.inverted_residuals import PackedLayers, inverted_residuals, pack_layers
from anchornet_ext.reference.inverted_residuals import GlobalMean, InvertedResidual, Layer

from ._structure import CountedTensors, Structure, parameters_of
from .graph_tracing import module_of, trace
from .mean_pooling import ADAPTIVE_POOLS, makes_one_pixel
from .native_calls import wants_gradient
from .residual_layers import linear_layers_of, map_layers_of
from .residual_runs import (
    FusedSequential,
    all_float32,
    detached,
    flat,
    have_hooks,
    inputs_of,
    is_for_kernels,
)

_Step = nn.Module | Literal["mean", "flatten"]


class WholeNetwork:
    """A network as one call of the operator, where it is one.

    The way through the network is that of the time when its modules were read: at the first call,
    and again when modules or parameters were exchanged or written to.

    Attributes:
        has_blocks: whether runs of its blocks are one operator each.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self.has_blocks = any(type(module) is FusedSequential for module in network.modules())
        self._known: _Known | None = None

    def run(self, images: Tensor) -> Tensor | None:
        """(B, C) of images (B, c, H, W), without gradients.

        None where the network has to run by its modules: it is something else than layers one after
        the other, something watches it, its parameters want gradients or are no float32 on the CPU,
        it is in training mode, or the images are none for the operator.
        """
        if not self.has_blocks or not is_for_kernels(images, dimensions=4):
            return None
        known = self._known
        if known is None or not known.is_as_it_was():
            known = self._known = self._read()
        if known is None or known.layers is None or not known.takes(images):
            return None
        return inverted_residuals(images, known.layers).flatten(1)

    def _read(self) -> _Known | None:
        modules = [*self._network.modules()]
        watched = have_hooks(modules) or self._network.training
        if watched or not all_float32(parameters_of(modules)):
            return None
        return _Known(self._network, modules)


class _Known:
    """The layers of a network, and what they are a copy of.

    Attributes:
        layers: in the operator's order, or None where the network is something else.
    """

    def __init__(self, network: nn.Module, modules: Sequence[nn.Module]) -> None:
        self._structure = Structure((network,), modules)
        self._parameters = CountedTensors(self._structure.parameters)
        steps = _steps_of(network) or []
        parts = [step for step in steps if isinstance(step, nn.Module)]
        dropouts = [m for m in modules if isinstance(m, nn.Dropout | nn.Dropout2d)]
        self._differ_in_training = [network, *parts, *dropouts]
        self.layers: PackedLayers | None = None
        layers = _layers_of(steps)
        if layers is None:
            return
        first = layers[0]
        assert not isinstance(first, GlobalMean)
        self._in_channels = inputs_of(first)
        # Of layers that do not fit together the network has its own errors.
        with contextlib.suppress(ValueError):
            self.layers = pack_layers([detached(layer) for layer in layers])

    def is_as_it_was(self) -> bool:
        """Also whether the parameters are still float32 on the CPU."""
        return self._structure.is_as_it_was() and (
            self.layers is None or self._parameters.are_as_they_were(torch.float32)
        )

    def takes(self, images: Tensor) -> bool:
        """Whether they have the right channels, else the usual error is wanted, and nothing is in
        training mode or wants a gradient."""
        return (
            images.shape[1] == self._in_channels
            and not wants_gradient(*self._structure.parameters)
            and not any(module.training for module in self._differ_in_training)
        )


def _layers_of(steps: list[_Step]) -> list[Layer] | None:
    """Layers of maps, their mean, possibly layers of one pixel, and linear layers."""
    if steps.count("mean") != 1 or steps.count("flatten") != 1:
        return None
    mean, flatten = steps.index("mean"), steps.index("flatten")
    maps, pixels, vectors = (
        [step for step in part if isinstance(step, nn.Module)]
        for part in (steps[:mean], steps[mean:flatten], steps[flatten:])
    )
    before, between, linear = map_layers_of(maps), map_layers_of(pixels), linear_layers_of(vectors)
    if flatten < mean or before is None or between is None or linear is None:
        return None
    if not any(isinstance(layer, InvertedResidual) for layer in before):
        return None
    after = [layer for _, layer in linear if layer is not None]
    return [*before, GlobalMean(), *between, *after]


def _steps_of(network: nn.Module) -> list[_Step] | None:
    """What a network does with its input and each result in turn; None if that is not all."""
    traced = trace(network)
    if traced is None:
        return None
    steps: list[_Step] = []
    last: fx.Node | None = None
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            last = node
            continue
        if node.all_input_nodes != [last]:
            return None
        if node.op == "output":
            return steps if node.args == (last,) else None
        step = _step_of(traced, node)
        if step is None:
            return None
        steps += step
        last = node
    return None


def _step_of(traced: fx.GraphModule, node: fx.Node) -> list[_Step] | None:
    module = module_of(traced, node)
    if module is not None:
        if len(node.args) != 1 or node.kwargs:
            return None
        if isinstance(module, ADAPTIVE_POOLS):
            return ["mean"] if type(module) in ADAPTIVE_POOLS and makes_one_pixel(module) else None
        if type(module) is nn.Flatten:
            return ["flatten"] if (module.start_dim, module.end_dim) == (1, -1) else None
        return [*flat(module)] if isinstance(module, FusedSequential) else [module]
    return _step_of_function(node.target, *node.args[1:], **node.kwargs)


def _step_of_function(function: object, *arguments: Any, **named: Any) -> list[_Step] | None:
    """Of a function, or the name of a method, with what it was given besides its input."""
    if function in (torch.flatten, "flatten"):
        return ["flatten"] if (arguments, named) in (((1,), {}), ((), {"start_dim": 1})) else None
    if function is functional.adaptive_avg_pool2d:
        return ["mean"] if arguments in ((1,), ((1, 1),)) and not named else None
    if function in (torch.mean, "mean"):
        keepdim = named.pop("keepdim", False)
        dimensions = named.pop("dim", arguments[0] if len(arguments) == 1 else arguments)
        if named or not isinstance(dimensions, Sequence):
            return None
        if [*dimensions] not in ([2, 3], [-2, -1]):
            return None
        return ["mean"] if keepdim else ["mean", "flatten"]
    if function is functional.dropout:
        return [] if named.get("training") is False else None
    return None

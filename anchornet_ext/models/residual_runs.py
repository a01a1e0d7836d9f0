"""Sequences of inverted residuals, or of linear layers, as one operator each
(`ops.inverted_residuals`).

A MobileNet is a hundred small operations. For a single image their calls, the maps that they write
and read again, and weights in an order that is none of theirs take several times as long as the
arithmetic does.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from anchornet_ext.ops.inverted_residuals import PackedLayers, inverted_residuals, pack_layers
from anchornet_ext.reference.inverted_residuals import InvertedResidual, WeightedLayer

from ._structure import HOOKS_OF_ALL, CountedTensors, Structure, parameters_of
from .native_calls import has_fast_kernels, runs_natively, wants_gradient
from .packed_linear import FEWEST_WEIGHTS
from .packed_weights import KeepsPacked
from .residual_layers import layer_of, linear_layers_of


def fuse_inverted_residuals(network: nn.Module) -> int:
    """Makes every `nn.Sequential` in `network` that holds inverted residuals a
    `FusedSequential`, in place; of those within one another, the outermost.

    Returns:
        How many there were; none where the operator would not run.
    """
    if not has_fast_kernels():
        return 0
    if _is_plain(network) and any(not isinstance(part, nn.Module) for part in _parts_of(network)):
        network.__class__ = FusedSequential  # with its modules, hooks and place
        return 1
    return sum(fuse_inverted_residuals(child) for child in network.children())


def fuse_linear_layers(network: nn.Module) -> int:
    """Makes every `nn.Sequential` in `network` of several linear layers, and activations between
    them, a `FusedLinears`, in place; of those within one another, the outermost.

    Returns:
        How many there were; none where the operator would not run.
    """
    if not has_fast_kernels():
        return 0
    # The class itself: what another one does with its modules is not known.
    if type(network) is nn.Sequential and _linear_run(network) is not None:
        network.__class__ = FusedLinears  # with its modules, hooks and place
        return 1
    return sum(fuse_linear_layers(child) for child in network.children())


class FusedSequential(KeepsPacked, nn.Sequential):
    """`nn.Sequential` for inference on a CPU, with the same results up to rounding.

    The modules stay where they are and keep their parameters, which may be replaced, loaded or
    moved: copies of them, in the order in which the operator reads them, are made at the first call
    and again when they have changed. What else the modules are (strides, the order of the modules)
    is read at the same time. Where gradients are wanted, forward-mode ones among them, in training
    mode, under autocast, while PyTorch compiles or exports, on another device, in another dtype
    than float32, and where something watches the modules, it is `nn.Sequential`.
    """

    #: Of what `forward` takes.
    _dimensions = 4

    def forward(self, input: Tensor) -> Tensor:
        known = self._known_runs() if is_for_kernels(input, self._dimensions) else None
        if known is None or not known.takes(input):
            out: Tensor = super().forward(input)  # type: ignore[no-untyped-call]
            return out
        x = input
        for part in known.parts:
            x = part(x) if isinstance(part, nn.Module) else self._run(x, part)
        return x

    def _run(self, x: Tensor, layers: PackedLayers) -> Tensor:
        return inverted_residuals(x, layers)

    def _parts(self) -> list[nn.Module | _Run]:
        """The modules to call and the runs of layers, as they are now."""
        return _parts_of(self)

    @property
    def inplace(self) -> bool:
        """Whether a call may change `input`: nothing is known of what comes before the first run,
        if it is no module of PyTorch's or says so itself."""
        first = takewhile(lambda part: isinstance(part, nn.Module), self._parts())
        modules = [module for part in first for module in part.modules()]  # type: ignore[union-attr]
        return any(
            getattr(module, "inplace", not type(module).__module__.startswith("torch.nn."))
            for module in modules
        )

    def _known_runs(self) -> _Runs | None:
        """What there is to run; None where the modules or their parameters are in the way."""
        known: _Runs | None = self.__dict__.get("_known")
        if known is None or not known.is_as_it_was():
            modules = [*self.modules()]
            if have_hooks(modules) or not all_float32(parameters_of(modules)):
                return None
            known = self.__dict__["_known"] = _Runs(self, modules)
        parameters = known.structure.parameters
        if wants_gradient(*parameters):
            return None
        return None if any(module.training for module in known.fused) else known


class FusedLinears(FusedSequential):
    """`nn.Sequential` of linear layers and activations, for inference on a CPU: (B, C) to (B, C').

    A classifier of two layers is five calls otherwise, each of which waits for its code. What
    `FusedSequential` says of modules, parameters and where it is `nn.Sequential` holds here.
    """

    _dimensions = 2

    def _run(self, x: Tensor, layers: PackedLayers) -> Tensor:
        return super()._run(x[:, :, None, None], layers).flatten(1)

    def _parts(self) -> list[nn.Module | _Run]:
        run = _linear_run(self)
        return [*self.children()] if run is None else [run]


class _Runs:
    """What a `FusedSequential` does, with the parameters in the operator's order.

    Attributes:
        structure: the modules that this was read from.
        parts: modules to call, and runs of layers.
        fused: the modules that these layers were.
    """

    def __init__(self, sequence: FusedSequential, modules: Sequence[nn.Module]) -> None:
        self.structure = Structure((sequence,), modules)
        self._parameters = CountedTensors(self.structure.parameters)
        self.parts: list[nn.Module | PackedLayers] = []
        self.fused: list[nn.Module] = []
        self._in_channels: int | None = None
        for part in sequence._parts():
            if isinstance(part, nn.Module):
                self.parts.append(part)
                continue
            self.fused += [module for module, _ in part]
            layers = [detached(layer) for _, layer in part if layer is not None]
            if not self.parts:
                self._in_channels = inputs_of(layers[0])
            self.parts.append(pack_layers(layers))

    def is_as_it_was(self) -> bool:
        """Also whether the parameters are still float32 on the CPU."""
        return self.structure.is_as_it_was() and self._parameters.are_as_they_were(torch.float32)

    def takes(self, input: Tensor) -> bool:
        """Whether `input` has the right channels; else the usual error is wanted."""
        return self._in_channels is None or input.shape[1] == self._in_channels


#: Modules and the layers that they are; None: it is part of the layer before.
_Run = Sequence[tuple[nn.Module, WeightedLayer | None]]


def _linear_run(sequence: nn.Sequential) -> _Run | None:
    """The linear layers of a sequence of nothing else, if there are several and not all small."""
    run = linear_layers_of(sequence.children())
    weights = [layer.weight.numel() for _, layer in run or () if layer is not None]
    return run if len(weights) > 1 and sum(weights) >= FEWEST_WEIGHTS else None


def _parts_of(sequence: nn.Sequential) -> list[nn.Module | _Run]:
    """The modules of a sequence, those within sequences in it as well, and the runs of layers."""
    parts: list[nn.Module | _Run] = []
    run: list[tuple[nn.Module, WeightedLayer | None]] = []
    for module in [*flat(sequence), None]:
        layer = None if module is None else layer_of(module)
        if module is not None and layer is not None:
            run.append((module, layer))
            continue
        if any(isinstance(layer, InvertedResidual) for _, layer in run):
            parts.append(run)
        else:  # a convolution or two, which are faster by themselves
            parts.extend(module for module, _ in run)
        run = []
        if module is not None:
            parts.append(module)
    return parts


def _is_plain(module: nn.Module) -> TypeGuard[nn.Sequential]:
    return type(module) in (nn.Sequential, FusedSequential)


def flat(sequence: nn.Sequential) -> list[nn.Module]:
    """The modules of a sequence and, in their places, those of sequences in it that are no layer of
    their own."""
    modules: list[nn.Module] = []
    for child in sequence.children():
        if _is_plain(child) and layer_of(child) is None:
            modules += flat(child)
        else:
            modules.append(child)
    return modules


def inputs_of(layer: WeightedLayer) -> int:
    """Channels that a layer takes."""
    if isinstance(layer, InvertedResidual):
        if layer.expand is None:
            return len(layer.depthwise.weight)
        layer = layer.expand
    return layer.weight.shape[1]


def detached(value: Any) -> Any:
    """A layer with parameters that want no gradient."""
    if isinstance(value, Tensor):
        return value.detach()
    return type(value)(*map(detached, value)) if isinstance(value, tuple) else value


def have_hooks(modules: Sequence[nn.Module]) -> bool:
    """Whether something watches one of these, or all modules, or changes what they give."""
    return any(HOOKS_OF_ALL) or any(m._forward_hooks or m._forward_pre_hooks for m in modules)


def all_float32(parameters: Sequence[Tensor]) -> bool:
    return all(p.is_cpu and p.dtype == torch.float32 for p in parameters)


def is_for_kernels(input: Tensor, dimensions: int) -> bool:
    """Whether the operator may compute what comes of `input`, of so many dimensions."""
    return (
        runs_natively(input)
        and input.dtype == torch.float32
        and input.dim() == dimensions
        and input.numel() > 0
        and not wants_gradient(input)
        and has_fast_kernels()
    )

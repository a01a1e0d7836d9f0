"""A network as a graph of operations, in which nothing is changed in place any more.

`torch.fx` sees what a network does with one image batch of unknown size. What it cannot see, and
what could mean something else as a graph, is left to the network itself.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from ._structure import HOOKS_OF_ALL
from .mean_pooling import MeanPool2d
from .packed_convolutions import PackedConv2d
from .packed_linear import PackedLinear, is_plain_linear
from .residual_runs import FusedSequential

#: Every in-place operator of Python; a proxy would silently make them the ordinary ones.
_IN_PLACE_OPERATORS = (
    "iadd", "isub", "imul", "imatmul", "itruediv", "ifloordiv", "imod", "ipow",
    "iand", "ior", "ixor", "ilshift", "irshift",
)  # fmt: skip
#: Modules whose result is a new tensor, whatever their input.
_MAKES_NEW = (
    nn.Conv2d,
    nn.Linear,
    nn.BatchNorm2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
)
_NEW_BY_FUNCTION = (torch.cat, torch.add, operator.add, torch.relu, functional.relu)
#: What is nothing in evaluation mode.
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)


def trace(network: nn.Module) -> fx.GraphModule | None:
    """The graph of a network in evaluation mode, or None where there is none that is surely equal.

    The graph module shares all modules with `network`. A module does not appear where it does
    nothing in evaluation mode, and an operation that changes its input in place does so only if
    nobody else reads that input; so operations may be moved as far as their inputs allow.

    Args:
        network: maps images (B, C, H, W) to anything, its convolutions packed.
    """
    hooked = any(HOOKS_OF_ALL) or any(any(hooks_of(module)) for module in network.modules())
    if network.training or hooked:
        return None
    try:
        # What is drawn on the way is thrown away.
        with _ONE_AT_A_TIME, torch.random.fork_rng(devices=[]):
            graph = _Tracer().trace(network)
    except Exception:  # a way that depends on values, code that wants tensors, whatever else
        return None
    traced = fx.GraphModule(network, graph)
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1 or any(_is_constant(node) for node in graph.nodes):
        return None
    for node in list(graph.nodes):
        if node.op == "call_module" and type(module_of(traced, node)) in _NOTHING:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    if not all(_settle(traced, node) for node in list(graph.nodes)):
        return None
    graph.lint()
    return traced


def hooks_of(module: nn.Module) -> tuple[dict[int, Any], ...]:
    """Where those are registered who watch a module or change what it gives."""
    return (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )


def module_of(traced: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that a node calls, if it calls one."""
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def is_relu(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is the ReLU of its first argument, in place or not."""
    if not node.args or not isinstance(node.args[0], fx.Node):
        return False
    if node.op == "call_module":
        return type(module_of(traced, node)) is nn.ReLU
    if node.op == "call_function":
        return node.target in (torch.relu, torch.relu_, functional.relu)
    return node.op == "call_method" and node.target in ("relu", "relu_")


def is_sum(node: fx.Node) -> bool:
    """Whether a node is the plain sum of two others."""
    return (
        node.op == "call_function"
        and node.target in (operator.add, operator.iadd, torch.add)
        and len(node.args) == 2
        and not node.kwargs
        and all(isinstance(argument, fx.Node) for argument in node.args)
    )


class _Proxy(fx.Proxy):
    """A proxy that tells `x += y` from `x = x + y`."""


def _record(function: Callable[..., Any]) -> Callable[..., Any]:
    def in_place(self: _Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return in_place


for _name in _IN_PLACE_OPERATORS:
    setattr(_Proxy, f"__{_name}__", _record(getattr(operator, _name)))


#: `torch.fx` puts its own functions in the place of `nn.Module`'s meanwhile.
_ONE_AT_A_TIME = threading.RLock()


class _Tracer(fx.Tracer):
    """Traces what its own thread does; modules that others run meanwhile just run."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = isinstance(m, PackedConv2d | PackedLinear | MeanPool2d | FusedSequential)
        return ours or is_plain_linear(m) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> _Proxy:
        return _Proxy(node, self)


def _is_constant(node: fx.Node) -> bool:
    """Whether a tensor was made while tracing: it may have been another one at every call."""
    return node.op == "get_attr" and str(node.target).startswith("_tensor_constant")


def _settle(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Makes a node harmless that changes its input in place. Whether that was possible."""
    if not _works_in_place(traced, node):
        return True
    changed = node.args[0] if node.args else None
    if not isinstance(changed, fx.Node) or "out" in node.kwargs or not _is_new(traced, changed):
        return False
    if len(changed.users) == 1:
        return True
    # Who reads it later reads the result; who read it before must not have kept a view of it.
    if not (is_relu(traced, node) or is_sum(node)):
        return False
    for user in list(changed.users):
        if user is node:
            continue
        if node < user:
            user.replace_input_with(changed, node)
        elif not _is_new(traced, user):
            return False
    if len(changed.users) > 1:
        node.op = "call_function"
        node.target = torch.relu if is_relu(traced, node) else operator.add
        node.args = node.args[:1] if node.target is torch.relu else node.args
        node.kwargs = {}
    return True


def _works_in_place(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(module_of(traced, node), "inplace", False))
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__")
    if node.op != "call_function":
        return False
    name = getattr(node.target, "__name__", "")
    of_python = node.target in [getattr(operator, name) for name in _IN_PLACE_OPERATORS]
    asked = node.kwargs.get("inplace", False) is not False or "out" in node.kwargs
    # Where the flag comes by its place, it is the only truth value that activations take.
    by_place = any(argument is True for argument in node.args[1:])
    of_torch = str(getattr(node.target, "__module__", "")).startswith("torch.nn.functional")
    return of_python or asked or (by_place and of_torch) or name.endswith("_")


def _is_new(traced: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node's result shares no memory with anything that is made before it.

    But with the input that a ReLU or a sum in place changed: that one nobody reads any more, once
    `_settle` has seen it.
    """
    if node.op == "call_module":
        return isinstance(module_of(traced, node), _MAKES_NEW) or is_relu(traced, node)
    if node.op == "call_function":
        return node.target in _NEW_BY_FUNCTION or is_sum(node) or is_relu(traced, node)
    return is_relu(traced, node)

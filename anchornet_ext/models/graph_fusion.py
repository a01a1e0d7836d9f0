"""Operations of a network's graph made one: fewer ways through the memory, and fewer calls.

A convolution that nothing but a ReLU reads does the ReLU itself, and so it does with the sum of a
residual block. `FUSIONS` are the passes over the graph, in their order; each takes the graph of
`graph_tracing.trace`, replaces what it knows by nodes that call modules, and says how many.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, fx, nn

from .graph_tracing import is_relu, is_sum, module_of, trace
from .packed_convolutions import Activation, PackedConv2d

Fusion = Callable[[fx.GraphModule], int]


class FusedConvolution(nn.Module):
    """A packed convolution with what follows it: ``activation(conv(input) + add)``.

    It asks nobody whether it may run as one operation: whoever runs the graph has to ask
    `native_calls.runs_natively`.
    """

    def __init__(self, conv: PackedConv2d, activation: Activation) -> None:
        super().__init__()
        self.conv = conv
        self.activation: Activation = activation

    def forward(self, input: Tensor, add: Tensor | None = None) -> Tensor:
        return self.conv.run_fused(input, add, self.activation)

    def extra_repr(self) -> str:
        return f"activation={self.activation}"


def fuse(network: nn.Module) -> fx.GraphModule | None:
    """The network's graph with its operations fused, or None where there is nothing to gain.

    It shares all modules and weights with `network`, and is for the CPU, without gradients.
    """
    traced = trace(network)
    if traced is None:
        return None
    found = sum(fusion(traced) for fusion in FUSIONS)
    if found == 0:
        return None
    traced.graph.lint()
    traced.recompile()
    return traced


def fuse_convolutions(traced: fx.GraphModule) -> int:
    """Convolutions with the sum and the ReLU behind them."""
    graph = traced.graph
    count = 0
    for node in list(graph.nodes):
        if not isinstance(module_of(traced, node), PackedConv2d) or len(node.args) != 1:
            continue
        last, add = node, None
        after = _only_user(last)
        if after is not None and is_sum(after):
            add = _other(after, node)
            last = after if add is not None else last
            after = _only_user(last)
        activation: Activation = "none"
        if after is not None and is_relu(traced, after):
            last, activation = after, "relu"
        if last is not node:
            _replace(traced, node, last, add, activation, count)
            count += 1
    return count


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _other(total: fx.Node, node: fx.Node) -> fx.Node | None:
    """What is added to `node`, unless that is itself."""
    others = [argument for argument in total.args if argument is not node]
    return others[0] if len(others) == 1 and isinstance(others[0], fx.Node) else None


def _replace(
    traced: fx.GraphModule,
    conv: fx.Node,
    last: fx.Node,
    add: fx.Node | None,
    activation: Activation,
    index: int,
) -> None:
    name = f"fused_convolution_{index}"
    module = module_of(traced, conv)
    assert isinstance(module, PackedConv2d)
    traced.add_submodule(name, FusedConvolution(module, activation))
    with traced.graph.inserting_before(last):
        fused = traced.graph.call_module(name, (conv.args[0], *([] if add is None else [add])))
    last.replace_all_uses_with(fused)
    step: fx.Node | None = last
    while step is not None and step is not conv:
        before = next(a for a in step.args if isinstance(a, fx.Node) and a is not add)
        traced.graph.erase_node(step)
        step = before
    traced.graph.erase_node(conv)


FUSIONS: tuple[Fusion, ...] = (fuse_convolutions,)

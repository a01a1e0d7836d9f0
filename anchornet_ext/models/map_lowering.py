"""Parts of a fused graph as programs for small maps (`ops.run_map_program`).

A program is made for images of one shape: which convolutions are the faster there than oneDNN's
depends on their maps. What a graph's nodes make of such images is recorded on the first batch, in
an ordinary run.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from anchornet_ext.ops.map_program import MapProgram, pack_map_program, run_map_program
from anchornet_ext.reference.map_program import MapStep

from ._structure import Contents
from .graph_fusion import FusedConvolution
from .graph_tracing import is_relu, is_sum, module_of
from .mean_pooling import ADAPTIVE_POOLS, makes_one_pixel
from .packed_convolutions import PackedConv2d
from .packed_linear import PackedLinear

#: Of fewer operations a program would save nothing.
_FEWEST_OPERATIONS = 2
_FEWEST_CHANNELS = 16
_LINEAR = (nn.Linear, PackedLinear)

#: Node -> the shape of what it makes; None where that is no tensor of the images' dtype on the CPU.
Shapes = dict[fx.Node, "tuple[int, ...] | None"]


class Recorder(fx.Interpreter):
    """Runs a graph on images of a dtype and remembers the shapes of what its nodes make."""

    def __init__(self, graph: fx.GraphModule, dtype: torch.dtype) -> None:
        super().__init__(graph)
        self.shapes: Shapes = {}
        self._dtype = dtype

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        is_maps = isinstance(result, Tensor) and result.dtype == self._dtype and result.is_cpu
        self.shapes[n] = tuple(result.shape) if is_maps else None
        return result


Programs = dict[tuple[fx.Node, ...], "LoweredMaps"]


def lower(
    graph: fx.GraphModule, shapes: Shapes, known: Programs, dtype: torch.dtype
) -> fx.GraphModule | None:
    """The graph with all that can be in programs, or None if that is nothing.

    It shares its modules with `graph`, and is for images of the shape that was recorded alone.

    Args:
        known: programs by their nodes, which keep weights in an order of their own; those that are
            there already are used, new ones added.
        dtype: of the images.
    """
    parts = [tuple(part) for part in _runs_of(graph, shapes) if _is_worth_it(graph, part)]
    if not parts:
        return None
    last = {part[-1]: (part, f"map_program_{index}") for index, part in enumerate(parts)}
    inside = {node for part in parts for node in part}
    lowered = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    modules = nn.Module()
    modules.__dict__.update(graph.__dict__)
    modules._modules = dict(graph._modules)
    for node in graph.graph.nodes:
        if node not in inside:
            copies[node] = lowered.node_copy(node, lambda n: copies[n])
        if node not in last:
            continue
        part, name = last[node]
        lowering = _Lowering(graph, shapes, part)
        if part not in known:
            known[part] = lowering.module(dtype)
        modules.add_module(name, known[part])
        results = lowered.call_module(name, tuple(copies[n] for n in lowering.inputs))
        for place, made in enumerate(lowering.outputs):
            result = lowered.call_function(operator.getitem, (results, place))
            if len(shapes[made] or ()) == 2:
                result = lowered.call_function(torch.flatten, (result, 1))
            copies[made] = result
    return fx.GraphModule(modules, lowered)


class LoweredMaps(nn.Module):
    """A program for maps of a dtype, packed anew whenever one of its parameters has changed."""

    def __init__(
        self,
        make: Callable[[], tuple[list[MapStep], list[int], int]],
        owners: Sequence[nn.Module],
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self._make, self._dtype = make, dtype
        # Dictionaries, so that what is a module's of the network is not one of this.
        self._dicts = [held for owner in owners for held in (owner._parameters, owner._buffers)]
        self._packed: _Packed | None = None
        for owner in owners:
            if isinstance(owner, PackedConv2d):
                owner.forget_packed()  # those of the run that was recorded

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        packed = self._packed
        if packed is None or not packed.of.are_as_they_were():
            # Before they are read: what is written meanwhile has to be seen.
            of = Contents(self._dicts)
            packed = self._packed = _Packed(of, pack_map_program(*self._make(), self._dtype))
        return run_map_program(inputs, packed.program)


class _Packed(NamedTuple):
    """A program, and the parameters that it was made of as they were."""

    of: Contents
    program: MapProgram


def _runs_of(graph: fx.GraphModule, shapes: Shapes) -> Iterator[list[fx.Node]]:
    run: list[fx.Node] = []
    for node in graph.graph.nodes:
        if _can_be_lowered(graph, node, shapes):
            run.append(node)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _is_worth_it(graph: fx.GraphModule, part: Sequence[fx.Node]) -> bool:
    return len(part) >= _FEWEST_OPERATIONS and any(
        convolution_of(module_of(graph, node)) is not None for node in part
    )


def convolution_of(module: nn.Module | None) -> PackedConv2d | None:
    """The convolution that a module is, fused with others or not."""
    if isinstance(module, FusedConvolution):
        return module.conv
    return module if isinstance(module, PackedConv2d) else None


def _can_be_lowered(graph: fx.GraphModule, node: fx.Node, shapes: Shapes) -> bool:
    shape, sources = shapes.get(node), node.all_input_nodes
    if shape is None or 0 in shape or not sources or node.op in ("placeholder", "output"):
        return False
    read = [shapes.get(source) for source in sources]
    if _is_flatten(node) or type(module_of(graph, node)) in _LINEAR:
        # Of one pixel only: there it means nothing, and a linear layer is a convolution.
        flat = read[0] is not None and all(size == 1 for size in read[0][2:])
        return len(shape) == 2 and flat and node.op != "call_method"
    if len(shape) != 4 or any(other is None or len(other) != 4 for other in read):
        return False
    if is_sum(node):
        return all(other == shape for other in read)
    return is_relu(graph, node) or _is_cat(node) or _kind(graph, node, shapes) is not None


class _Pool(NamedTuple):
    kind: Any
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


_MEAN = _Pool("mean", (1, 1), (1, 1), (0, 0))


def _kind(
    graph: fx.GraphModule, node: fx.Node, shapes: Shapes
) -> PackedConv2d | nn.BatchNorm2d | _Pool | None:
    """What a node is that makes a map of one map, if a program can do it."""
    if node.op == "call_function":
        of_one = node.target is functional.adaptive_avg_pool2d and len(node.args) == 2
        return _MEAN if of_one and node.args[1] in (1, (1, 1)) and not node.kwargs else None
    module = module_of(graph, node)
    conv = convolution_of(module)
    if conv is not None:
        shape = shapes[node]
        assert shape is not None
        added = [shapes.get(other) for other in node.all_input_nodes[1:]]
        fits = (
            conv.groups == 1
            and conv.in_channels >= _FEWEST_CHANNELS
            and all(other == shape for other in added)
        )
        return conv if fits else None
    if type(module) is nn.BatchNorm2d:
        return module if module.running_var is not None and not module.training else None
    if isinstance(module, ADAPTIVE_POOLS) and type(module) in ADAPTIVE_POOLS:
        return _MEAN if makes_one_pixel(module) else None
    return _pool(module)


def _pool(module: nn.Module | None) -> _Pool | None:
    if type(module) is nn.MaxPool2d:
        if module.ceil_mode or module.return_indices or _pair(module.dilation) != (1, 1):
            return None
        kind = "max_pool"
    elif type(module) is nn.AvgPool2d:
        without = _pair(module.padding) == (0, 0)
        if module.ceil_mode or module.divisor_override is not None:
            return None
        if not (module.count_include_pad or without):
            return None
        kind = "average_pool"
    else:
        return None
    return _Pool(kind, _pair(module.kernel_size), _pair(module.stride), _pair(module.padding))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _is_cat(node: fx.Node) -> bool:
    return (
        node.op == "call_function"
        and node.target is torch.cat
        and isinstance(node.args[0], (list, tuple))
        and all(isinstance(part, fx.Node) for part in node.args[0])
        and (node.args[1:] == (1,) or dict(node.kwargs) == {"dim": 1})
    )


def _parts_of(cat: fx.Node) -> list[fx.Node]:
    """What a concatenation puts together, some of it twice perhaps."""
    parts = cat.args[0]
    assert isinstance(parts, (list, tuple))
    return [part for part in parts if isinstance(part, fx.Node)]


def _is_flatten(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target is torch.flatten and node.args[1:] == (1,)


class _Lowering:
    """The steps of one part of a graph.

    Attributes:
        inputs, outputs: the nodes outside whose values the part reads, and the part's nodes that
            are read outside.
    """

    def __init__(self, graph: fx.GraphModule, shapes: Shapes, part: Sequence[fx.Node]) -> None:
        self._graph, self._shapes, self._part = graph, shapes, part
        own = set(part)
        read = [source for node in part for source in node.all_input_nodes]
        self.inputs = list(dict.fromkeys(node for node in read if node not in own))
        self.outputs = [node for node in part if any(user not in own for user in node.users)]

    def module(self, dtype: torch.dtype) -> LoweredMaps:
        modules = [module_of(self._graph, node) for node in self._part]
        owners = [convolution_of(module) or module for module in modules if module is not None]
        return LoweredMaps(self._steps, list(dict.fromkeys(owners)), dtype)

    def _steps(self) -> tuple[list[MapStep], list[int], int]:
        self._values = {node: index for index, node in enumerate(self.inputs)}
        self._count = len(self.inputs)
        self._made: list[MapStep] = []
        skipped: set[fx.Node] = set()
        for node in self._part:
            if node not in skipped:
                skipped |= self._lower(node)
        return self._made, self._results(), len(self.inputs)

    def _results(self) -> list[int]:
        """The outputs' values, none of them an input and none twice."""
        results: list[int] = []
        for node in self.outputs:
            value = self._values[node]
            if value < len(self.inputs) or value in results:
                copied = self._new()
                self._made.append(MapStep("affine", value, copied))
                value = copied
            results.append(value)
        return results

    def _new(self) -> int:
        self._count += 1
        return self._count - 1

    def _lower(self, node: fx.Node) -> set[fx.Node]:
        """Adds the steps of a node. Returns the nodes after it that they do as well."""
        if _is_flatten(node):
            self._values[node] = self._values[node.all_input_nodes[0]]
            return set()
        if _is_cat(node):
            return self._lower_cat(node)
        last = node
        target = self._new()
        source = self._values[node.all_input_nodes[0]]
        module = module_of(self._graph, node)
        if is_relu(self._graph, node):
            self._made.append(MapStep("affine", source, target, relu=True))
        elif is_sum(node):
            others = [self._values[argument] for argument in node.args]  # type: ignore[index]
            last = self._relu_after(node)
            self._made.append(
                MapStep("sum", others[0], target, add=others[1], relu=last is not node)
            )
        elif isinstance(module, nn.Linear):
            weight = module.weight[:, :, None, None]
            self._made.append(MapStep("conv", source, target, weight, module.bias))
        else:
            kind = _kind(self._graph, node, self._shapes)
            if isinstance(kind, PackedConv2d):
                self._made.append(self._convolve(node, kind, target))
            elif isinstance(kind, nn.BatchNorm2d):
                last = self._relu_after(node)
                factor, summand = _as_affine(kind)
                self._made.append(
                    MapStep("affine", source, target, factor, summand, relu=last is not node)
                )
            else:
                assert kind is not None
                self._made.append(
                    MapStep(kind.kind, source, target, kernel=kind.kernel, stride=kind.stride,
                            padding=kind.padding)
                )  # fmt: skip
        self._values[node] = self._values[last] = target
        return {last} - {node}

    def _convolve(self, node: fx.Node, conv: PackedConv2d, target: int) -> MapStep:
        module = module_of(self._graph, node)
        values = [self._values[other] for other in node.args]  # type: ignore[index]
        return MapStep(
            "conv",
            values[0],
            target,
            conv.weight,
            conv.bias,
            add=values[1] if len(values) > 1 else None,
            relu=isinstance(module, FusedConvolution) and module.activation == "relu",
            stride=_pair(conv.stride),
            padding=_pair(conv.padding),
            dilation=_pair(conv.dilation),
        )

    def _lower_cat(self, node: fx.Node) -> set[fx.Node]:
        """A concatenation, with the batch norm and the ReLU behind it, part by part."""
        skipped: set[fx.Node] = set()
        last, factor, summand = node, None, None
        after = self._only_user(node)
        norm = None if after is None else module_of(self._graph, after)
        if after is not None and type(norm) is nn.BatchNorm2d:
            factor, summand = _as_affine(norm)
            skipped.add(after)
            last = after
        relu = self._relu_after(last)
        skipped |= {relu} - {last}
        target = self._new()
        shape = self._shapes[node]
        assert shape is not None
        begin = 0
        for part in _parts_of(node):
            part_shape = self._shapes[part]
            assert part_shape is not None
            here = slice(begin, begin + part_shape[1])
            self._made.append(
                MapStep(
                    "affine",
                    self._values[part],
                    target,
                    None if factor is None else factor[here],
                    None if summand is None else summand[here],
                    relu=relu is not last,
                    channels=shape[1],
                )
            )
            begin = here.stop
        self._values[node] = self._values[last] = self._values[relu] = target
        return skipped

    def _only_user(self, node: fx.Node) -> fx.Node | None:
        """The node of this part that alone reads `node`."""
        user = next(iter(node.users)) if len(node.users) == 1 else None
        return user if user in self._part else None

    def _relu_after(self, node: fx.Node) -> fx.Node:
        """The ReLU that alone reads `node`, or `node` itself."""
        after = self._only_user(node)
        return after if after is not None and is_relu(self._graph, after) else node


def _as_affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Factors and summands of a batch norm by its running statistics."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.detach().double()
    summand = -norm.running_mean.double() * factor
    if norm.bias is not None:
        summand = summand + norm.bias.detach().double()
    return factor.float(), summand.float()

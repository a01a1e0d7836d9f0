"""Reads modules as layers of `ops.inverted_residuals`: of torchvision's and timm's MobileNets and
EfficientNets, with batch norm folded.

What a block's `forward` does is known of these classes only, so a module of another class, also of
one that inherits from them, is none of them. Within a block everything is looked at.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from anchornet_ext.reference.inverted_residuals import (
    Convolution,
    InvertedResidual,
    SqueezeExcitation,
    WeightedLayer,
)

from .mean_pooling import ADAPTIVE_POOLS
from .packed_convolutions import PackedConv2d
from .packed_linear import PackedLinear, is_plain_linear

_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Hardswish: "hardswish",
    nn.SiLU: "silu",
}
_GATES: dict[type[nn.Module], str] = {
    nn.Hardsigmoid: "hardsigmoid",
    nn.Sigmoid: "sigmoid",
}
#: Modules that do nothing in evaluation.
_NOTHING = (nn.Identity, nn.Dropout)
_TORCHVISION, _TIMM = "torchvision.models", "timm.models._efficientnet_blocks"


def layer_of(module: nn.Module) -> WeightedLayer | None:
    """The layer that `module` is in evaluation, with its own parameters, or None."""
    try:
        if _is(module, "torchvision.models.mobilenetv2", "InvertedResidual"):
            return _block_of(module.get_submodule("conv"), bool(module.use_res_connect))
        if _is(module, "torchvision.models.mobilenetv3", "InvertedResidual") or _is(
            module, "torchvision.models.efficientnet", "MBConv"
        ):
            return _block_of(module.get_submodule("block"), bool(module.use_res_connect))
        if _is(module, _TIMM, "InvertedResidual"):
            return _timm_block(
                module, ("conv_pw", "bn1", "conv_dw", "bn2", "aa", "se", "conv_pwl", "bn3")
            )
        if _is(module, _TIMM, "DepthwiseSeparableConv"):
            return _timm_block(module, ("conv_dw", "bn1", "aa", "se", "conv_pw", "bn2"))
        if _is(module, _TIMM, "ConvBnAct"):
            if module.has_skip:
                return None
            return _convolution_of([module.get_submodule(n) for n in ("conv", "bn1", "aa")])
        if _is_sequential(module):
            return _convolution_of([module])
    except AttributeError:  # a version of the library in which they have other parts
        return None
    return None


def map_layers_of(modules: Iterable[nn.Module]) -> list[WeightedLayer] | None:
    """The layers of modules one after the other; None where something else is among them.

    An activation belongs to the convolution before.
    """
    found: list[WeightedLayer] = []
    for module in modules:
        layer = layer_of(module) or _convolution_of([module])
        if layer is None:
            activation, before = _ACTIVATIONS.get(type(module)), found.pop() if found else None
            if activation is None or not isinstance(before, Convolution):
                return None
            if before.activation != "none":
                return None
            layer = before._replace(activation=activation)
        found.append(layer)
    return found


def linear_layers_of(
    parts: Iterable[nn.Module],
) -> list[tuple[nn.Module, Convolution | None]] | None:
    """Linear layers one after the other, as 1x1 convolutions of one pixel.

    None where something else is among these parts. Activations belong to the layer before; of them
    and of what does nothing in evaluation there are the modules alone.
    """
    found: list[tuple[nn.Module, Convolution | None]] = []
    last: int | None = None  # where the linear layer is that an activation would belong to
    for module in (leaf for part in parts for leaf in _leaves(part, skip=())):
        if is_plain_linear(module) or type(module) is PackedLinear:
            linear: Any = module
            last = len(found)
            found.append((linear, Convolution(linear.weight[:, :, None, None], linear.bias)))
            continue
        if type(module) not in _NOTHING:
            activation = _ACTIVATIONS.get(type(module))
            if activation is None or last is None:
                return None
            before, layer = found[last]
            assert layer is not None
            found[last] = before, layer._replace(activation=activation)
            last = None
        found.append((module, None))
    return found


def _is(module: nn.Module, file: str, name: str) -> bool:
    """Whether `module` is of that very class. Who has such a module has imported it."""
    known = getattr(sys.modules.get(file), name, None)
    return known is not None and type(module) is known


def _is_sequential(module: nn.Module) -> bool:
    """A `nn.Sequential`, or one that differs in how it is made only."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _leaves(module: nn.Module, skip: tuple[type[nn.Module], ...] = _NOTHING) -> Iterator[nn.Module]:
    """What a sequence does, one after the other, without what does nothing."""
    if _is_sequential(module):
        for child in module.children():
            yield from _leaves(child, skip)
    elif type(module) not in skip:
        yield module


def _timm_block(module: Any, names: tuple[str, ...]) -> InvertedResidual | None:
    if module.conv_s2d is not None:
        return None
    parts = nn.Sequential(*(module.get_submodule(name) for name in names))
    return _block_of(parts, bool(module.has_skip))


def _block_of(sequence: nn.Module, residual: bool) -> InvertedResidual | None:
    if not _is_sequential(sequence):
        return None
    parts = [*_leaves(sequence)]
    convolutions: list[Convolution] = []
    groups: list[int] = []
    excitation: SqueezeExcitation | None = None
    while parts:
        if excitation is None and (read := _excitation_of(parts[0])) is not None:
            if not groups or groups[-1] == 1:
                return None  # the gates come right after the depthwise convolution
            excitation = read
            del parts[0]
            continue
        length = 2 if len(parts) > 1 and type(parts[1]) in _ACTIVATIONS else 1
        convolution = _convolution_of(parts[:length], depthwise=True)
        if convolution is None:
            return None
        convolutions.append(convolution)
        groups.append(_groups(parts[0]))
        del parts[:length]
    if len(convolutions) == 2:
        expand, (depthwise, project) = None, convolutions
    elif len(convolutions) == 3:
        expand, depthwise, project = convolutions
    else:
        return None
    expanded = len(depthwise.weight)
    shapes = [tuple(c.weight.shape[2:]) for c in (expand, project) if c is not None]
    if (
        groups[-2] != expanded
        or depthwise.weight.shape[1] != 1
        or any(count != 1 for count in (*groups[:-2], groups[-1]))
        or depthwise.weight.shape[2] not in (3, 5)
        or depthwise.stride not in (1, 2)
        or any(shape != (1, 1) for shape in shapes)
        or any(c.stride != 1 for c in (expand, project) if c is not None)
        or project.activation != "none"
        or (excitation is not None and excitation.squeeze.shape[1] != expanded)
    ):
        return None
    return InvertedResidual(expand, depthwise, excitation, project, residual)


def _groups(module: nn.Module) -> int:
    return module.groups if isinstance(module, nn.Conv2d) else 0


def _convolution_of(modules: list[nn.Module], depthwise: bool = False) -> Convolution | None:
    """A plain convolution with odd square kernel and padding by half of it, and an activation."""
    leaves = [leaf for module in modules for leaf in _leaves(module)]
    if not 1 <= len(leaves) <= 2:
        return None
    conv: Any = leaves[0]
    if type(conv) not in (nn.Conv2d, PackedConv2d) or conv.padding_mode != "zeros":
        return None
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    if (
        kernel % 2 == 0
        or conv.kernel_size != (kernel, kernel)
        or conv.stride != (stride, stride)
        or conv.padding != (kernel // 2, kernel // 2)
        or conv.dilation != (1, 1)
        or (conv.groups != 1 and not depthwise)
    ):
        return None
    activation = "none"
    if len(leaves) == 2:
        known = _ACTIVATIONS.get(type(leaves[1]))
        if known is None:
            return None
        activation = known
    return Convolution(conv.weight, conv.bias, stride, activation)


def _excitation_of(module: nn.Module) -> SqueezeExcitation | None:
    if _is(module, "torchvision.ops.misc", "SqueezeExcitation"):
        names = ("fc1", "activation", "fc2", "scale_activation")
        pool = module.get_submodule("avgpool")
        if type(pool) not in ADAPTIVE_POOLS or pool.output_size != 1:
            return None
    elif _is(module, _TIMM, "SqueezeExcite"):
        names = ("conv_reduce", "act1", "conv_expand", "gate")
    else:
        return None
    squeeze, activation, excite, gate = (module.get_submodule(name) for name in names)
    first, second = (_convolution_of([conv]) for conv in (squeeze, excite))
    if first is None or second is None:
        return None
    kind, kind_of_gate = _ACTIVATIONS.get(type(activation)), _gate_of(gate)
    if kind is None or kind_of_gate is None:
        return None
    if any(c.weight.shape[2] != 1 or c.stride != 1 for c in (first, second)):
        return None
    return SqueezeExcitation(
        first.weight, first.bias, second.weight, second.bias, kind, kind_of_gate
    )


def _gate_of(module: nn.Module) -> str | None:
    if _is(module, "timm.layers.activations", "Sigmoid"):
        return "sigmoid"
    return _GATES.get(type(module))

"""Batch norm into the convolution before it, in whatever network this can be done exactly.

In evaluation a batch norm is one scale and one shift per channel, so a convolution whose result
nothing but that batch norm reads can do both itself. Which these are is not read off the modules'
order or a symbolic trace, which many networks do not allow, but seen: a copy without weights runs
once on the meta device, and every operator that runs is watched, with the tensors that it reads.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from anchornet_ext._meta import meta_images, meta_twin

#: Sides of the images that are tried, in pixels, until the network takes one.
_SIDES = (224, 95, 256, 299, 384, 32)
_NORMS = (nn.BatchNorm2d, nn.BatchNorm1d, nn.BatchNorm3d)


@dataclass(frozen=True)
class FoldedNorms:
    """What became of a network's batch norms.

    Attributes:
        folded: how many went into a convolution.
        kept: the names of those that are still there: nothing comes before them but a
            concatenation or a sum, say, or something else reads the convolution's result as well.
        obstacle: why none could be looked at, or None.
    """

    folded: int
    kept: tuple[str, ...]
    obstacle: str | None = None


@torch.no_grad()
def fold_batch_norms(network: nn.Module, image_size: tuple[int, int] | None = None) -> FoldedNorms:
    """Folds batch norms of `network`, in place, wherever this changes nothing but the rounding.

    A batch norm is folded if it normalises by its running statistics, its input is the result of an
    ordinary `nn.Conv2d` (or one that differs in its padding only) which nothing else reads, both
    are used once, no hook would see the difference, and no parameter of the convolution belongs to
    anything else. The network is put into evaluation mode: folded, it cannot train. The weights are
    computed in float64.

    A network whose way through its layers depends on the values or on the size of the images is
    seen on one way only. None of torchvision's or timm's classification networks is like that.

    Args:
        network: maps images (B, C, H, W) to anything.
        image_size: (H, W) that it takes; None tries the usual ones.
    """
    network.eval()
    norms = {name: m for name, m in network.named_modules() if isinstance(m, _NORMS)}
    if not norms:
        return FoldedNorms(0, ())
    try:
        pairs = _pairs(network, image_size)
    except _NotSeen as error:
        return FoldedNorms(0, tuple(norms), str(error))
    for conv_name, norm_names in pairs:
        _fold(network, conv_name, norm_names)
    gone = {name for _, names in pairs for name in names}
    return FoldedNorms(len(pairs), tuple(name for name in norms if name not in gone))


class _NotSeen(Exception):
    """The network could not be run on the meta device."""


def _pairs(
    network: nn.Module, image_size: tuple[int, int] | None
) -> list[tuple[str, tuple[str, ...]]]:
    """The convolutions to fold into, each with all the names of the batch norm."""
    seen, twin = _watched(network, image_size)
    names: dict[int, list[str]] = defaultdict(list)  # of the twin's modules
    for name, module in twin.named_modules(remove_duplicate=False):
        names[id(module)].append(name)
    owners: dict[int, list[nn.Module]] = defaultdict(list)  # of the twin's tensors
    for module in twin.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                owners[id(tensor)].append(module)

    pairs: list[tuple[str, tuple[str, ...]]] = []
    for convolved, norm_mean in seen.norm_inputs:
        weight = seen.convolutions.get(id(convolved))
        if weight is None or seen.reads[id(convolved)] != 1:
            continue
        conv, norm = _only(owners[id(weight[0])]), _only(owners[id(norm_mean)])
        if conv is None or norm is None or seen.reads[id(norm_mean)] != 1:
            continue
        if not _can_take(conv, weight, seen, owners) or not _can_go(norm, conv):
            continue
        original_conv = network.get_submodule(names[id(conv)][0])
        original_norm = network.get_submodule(names[id(norm)][0])
        if any(_hooks(part) for part in (original_conv, original_norm)):
            continue
        pairs.append((names[id(conv)][0], tuple(names[id(norm)])))
    return pairs


def _only(modules: Sequence[nn.Module]) -> nn.Module | None:
    return modules[0] if len(modules) == 1 else None


def _can_take(
    conv: nn.Module, weight: tuple[Any, Any], seen: _Watch, owners: dict[int, list[nn.Module]]
) -> bool:
    """Whether the convolution was of the module's own weight and bias, and they of it alone."""
    if not isinstance(conv, nn.Conv2d) or isinstance(conv, nn.LazyConv2d):
        return False
    kernel, bias = weight
    # `_watched` has given each convolution a bias: a module that ignores its own is no candidate.
    return (
        kernel is conv.weight
        and bias is conv.bias
        and seen.reads[id(kernel)] == seen.reads[id(bias)] == 1
        and len(owners[id(bias)]) == 1
    )


def _can_go(norm: nn.Module, conv: nn.Module) -> bool:
    return (
        isinstance(norm, nn.BatchNorm2d)
        and _instead_of(norm) is not None
        and norm.running_var is not None
        and norm.num_features == conv.out_channels
    )


def _instead_of(norm: nn.Module) -> nn.Module | None:
    """What remains of a batch norm module without its normalisation, or None if that is unknown."""
    if type(norm) is nn.BatchNorm2d:
        return nn.Identity()
    # timm has the activation in the module of the norm. Who uses it has imported it.
    timm_norms = getattr(sys.modules.get("timm.layers"), "BatchNormAct2d", None)
    if timm_norms is not None and type(norm) is timm_norms:
        drop, act = norm.get_submodule("drop"), norm.get_submodule("act")
        return nn.Sequential(drop, act)
    return None


def _hooks(module: nn.Module) -> bool:
    """Whether anybody watches what goes into or comes out of `module`, or computes its weights."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _fold(network: nn.Module, conv_name: str, norm_names: Sequence[str]) -> None:
    conv, norm = network.get_submodule(conv_name), network.get_submodule(norm_names[0])
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    weight = conv.weight.double() * scale[:, None, None, None]
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype), conv.weight.requires_grad)
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype), conv.weight.requires_grad)
    remainder = _instead_of(norm)
    assert remainder is not None
    for name in norm_names:
        network.set_submodule(name, remainder)


def _watched(network: nn.Module, image_size: tuple[int, int] | None) -> tuple[_Watch, nn.Module]:
    """What was seen of a run on the meta device, and the copy that ran."""
    sizes = [(side, side) for side in _SIDES] if image_size is None else [image_size]
    reason = "no size of image was tried"
    for size in sizes:
        try:
            twin = meta_twin(network)
            channels = _channels(twin)
            images = meta_images(twin, (2, channels, *size))
            for module in twin.modules():
                if isinstance(module, nn.Conv2d) and module.bias is None:
                    module.bias = nn.Parameter(module.weight.new_empty(module.out_channels))
            watch = _Watch()
            with watch:
                out = twin(images)
        except Exception as error:  # whatever networks of others raise
            lines = str(error).strip().splitlines() or [""]
            reason = f"{type(error).__name__}: {lines[0]}"
            continue
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                watch.reads[id(leaf)] += 1  # the caller reads what the network returns
        return watch, twin
    raise _NotSeen(f"{type(network).__name__} does not run on the meta device ({reason})")


def _channels(network: nn.Module) -> int:
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    return 3 if first is None else first.in_channels


class _Watch(TorchDispatchMode):
    """Notes which operator reads which tensor; tensors are known by their ids.

    Attributes:
        convolutions: weight and bias by the result.
        norm_inputs: input and running mean of each batch norm that uses its running statistics.
        reads: how many operators read a tensor.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.convolutions: dict[int, tuple[Any, Any]] = {}
        self.norm_inputs: list[tuple[Tensor, Tensor]] = []
        self.reads: Counter[int] = Counter()
        self._alive: list[Any] = []  # so that no id is given twice

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self._alive += [leaves, out]
        self.reads.update(map(id, leaves))
        packet = getattr(func, "overloadpacket", None)
        if packet is torch.ops.aten.convolution:
            transposed = args[6]
            if not transposed:
                self.convolutions[id(out)] = (args[1], args[2])
        elif packet is torch.ops.aten.native_batch_norm:
            # (input, weight, bias, running_mean, running_var, training, momentum, eps)
            running_mean, training = args[3], args[5]
            if running_mean is not None and not training:
                self.norm_inputs.append((args[0], running_mean))
        return out

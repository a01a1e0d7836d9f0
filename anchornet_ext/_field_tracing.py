"""Follows the receptive field of every tensor through a running network, operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

Pair = tuple[int, int]


class NotAGrid(Exception):
    """A layer after which locations no longer see equal boxes on a regular grid."""


class Field(NamedTuple):
    """What a location of a tensor sees; the last two dimensions of the tensor are the map's."""

    size: Pair
    stride: Pair
    offset: Pair

    def after_window(self, extent: Pair, step: Pair) -> Field:
        """After a window of `extent` that moves by `step` (Eq. 1)."""
        return Field(
            _each(lambda size, stride, k: size + (k - 1) * stride, self.size, self.stride, extent),
            _each(lambda stride, s: stride * s, self.stride, step),
            self.offset,
        )

    def union(self, other: Field) -> Field:
        """The smallest box around both."""
        offset = _each(min, self.offset, other.offset)
        end = _each(
            lambda a, b, c, d: max(a + b, c + d), self.offset, self.size, other.offset, other.size
        )
        return Field(_each(lambda e, o: e - o, end, offset), self.stride, offset)


def _each(function: Callable[..., int], *pairs: Pair) -> Pair:
    return function(*(p[0] for p in pairs)), function(*(p[1] for p in pairs))


def _two(value: Sequence[int]) -> Pair:
    """A pair of an operator's list argument, of which a single entry stands for both."""
    return (value[0], value[-1])


_REDUCTIONS = {"mean", "sum", "amax", "amin", "max", "min", "var", "std", "norm", "logsumexp"}
#: Position of the dimension in the arguments of operators that must not touch the map's.
_ALONG = {"_softmax": 1, "_log_softmax": 1, "cumsum": 1, "select": 1, "unbind": 1, "glu": 1}
_ALONG |= {"split": 2, "split_with_sizes": 2, "squeeze": 1, "flip": 1, "roll": 2}
_SAME = {"clone", "detach", "alias", "_to_copy", "contiguous", "lift_fresh", "dropout"}
_SAME |= {"channel_shuffle", "native_channel_shuffle"}
_MADE_OF_SHAPE = {"new_zeros", "new_ones", "new_empty", "new_full"}
_MADE_OF_SHAPE |= {"zeros_like", "ones_like", "empty_like", "full_like"}


class FieldTracing(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own
    """Keeps the field of every tensor that was computed from the images.

    Args:
        root: a network that nobody else uses: it gets hooks, to know which layer is running.
        images: what it will be run on.
        gates: types of modules in which what is pooled over the whole map counts as a constant.

    Running the network in this mode raises `NotAGrid` at the first layer that breaks the grid.
    """

    def __init__(self, root: nn.Module, images: Tensor, gates: tuple[type[nn.Module], ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        #: Only tensors that depend on the images are in here.
        self._fields: Any = WeakIdKeyDictionary()
        self._fields[images] = Field((1, 1), (1, 1), (0, 0))
        self._gates = gates
        self._running: list[tuple[str, nn.Module]] = [("", root)]
        for name, module in root.named_modules():
            if name:
                self._watch(name, module)

    def field_of(self, value: Any) -> Field | None:
        """The field of a tensor; None for whatever does not depend on the images."""
        field: Field | None = self._fields.get(value) if isinstance(value, Tensor) else None
        return field

    def _watch(self, name: str, module: nn.Module) -> None:
        def enter(*_: Any) -> None:
            self._running.append((name, module))

        def leave(*_: Any) -> None:
            self._running.pop()

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)

    def _refuse(self, why: str) -> NoReturn:
        name, module = self._running[-1]
        where = f"layer {name!r} ({type(module).__name__})" if name else type(module).__name__
        raise NotAGrid(f"no exact receptive field: {where} {why}")

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        inputs = [
            value
            for value in torch.utils._pytree.tree_leaves((args, kwargs))
            if isinstance(value, Tensor) and value in self._fields
        ]
        if not inputs:
            return func(*args, **kwargs)
        shape = inputs[0].shape  # before the call: it may be in place
        output = func(*args, **kwargs)
        field = self._rule(func, args, kwargs, inputs, shape, output)
        if field is not None:
            self._record(func, args, output, field)
        return output

    def _record(self, func: Any, args: tuple[Any, ...], output: Any, field: Field) -> None:
        if func._schema.is_mutable and self._fields.get(args[0]) != field:
            # What a view changes, its base and its other views see, and they are not followed.
            storage = args[0].untyped_storage()._cdata
            for other in self._fields:
                if other is not args[0] and other.untyped_storage()._cdata == storage:
                    self._refuse(f"writes into a part of a tensor ({func.__name__})")
        for tensor in torch.utils._pytree.tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._fields[tensor] = field

    def _rule(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        inputs: list[Tensor],
        shape: torch.Size,
        output: Any,
    ) -> Field | None:
        """The field of what `func` gives; None where it no longer depends on the images."""
        name: str = func._schema.name.removeprefix("aten::")
        field: Field = self._fields[inputs[0]]
        if name in _MADE_OF_SHAPE:
            return None
        if name == "convolution":
            return self._convolution(args, inputs)
        if name in ("max_pool2d_with_indices", "avg_pool2d"):
            return self._pool(name, args, shape)
        if torch.Tag.pointwise in func.tags or name in _SAME:
            return self._union(inputs, output)
        if name == "cat":
            self._must_not_touch(name, args[1] if len(args) > 1 else kwargs.get("dim", 0), shape)
            return self._union(inputs, output)
        if name == "slice":
            return self._slice(args, shape, field)
        if name.endswith("batch_norm") or name == "_native_batch_norm_legit_no_training":
            return self._batch_norm(name, args, field)
        if name in _REDUCTIONS or name in ("_adaptive_avg_pool2d", "adaptive_max_pool2d"):
            return self._reduction(func, args, kwargs, shape, field)
        if name in _ALONG:
            position = _ALONG[name]
            dim = args[position] if len(args) > position else kwargs.get("dim", 0)
            self._must_not_touch(name, dim, shape)
            return field
        if name in ("view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "expand"):
            if output.shape[-2:] != shape[-2:]:
                self._refuse(f"reshapes the map from {tuple(shape)} to {tuple(output.shape)}")
            return field
        if name in ("transpose", "permute"):
            order = list(range(len(shape)))
            if name == "permute":
                order = [d % len(shape) for d in args[1]]
            else:
                a, b = (d % len(shape) for d in args[1:3])
                order[a], order[b] = order[b], order[a]
            if order[-2:] != [len(shape) - 2, len(shape) - 1]:
                self._refuse(f"moves the rows and columns of the map ({name})")
            return field
        if name.startswith("upsample"):
            self._refuse("upsamples: neighbouring locations see boxes at uneven distances")
        if name == "constant_pad_nd" or "_pad" in name:
            self._refuse("pads: locations at the border see less than the others")
        return self._refuse(f"applies {name}, not known to treat all locations alike")

    def _union(self, inputs: list[Tensor], output: Any) -> Field:
        fields: list[Field] = [self._fields[tensor] for tensor in inputs]
        field = fields[0]
        for tensor, other in zip(inputs, fields, strict=True):
            if other.stride != field.stride:
                self._refuse(f"joins branches of strides {field.stride} and {other.stride}")
            if tensor.shape[-2:] != output.shape[-2:]:
                self._refuse(
                    f"spreads a map of {tuple(tensor.shape[-2:])} over one of "
                    f"{tuple(output.shape[-2:])}"
                )
            field = field.union(other)
        return field

    def _convolution(self, args: tuple[Any, ...], inputs: list[Tensor]) -> Field:
        x, weight, _, stride, padding, dilation, transposed = args[:7]
        if len(inputs) > 1 or inputs[0] is not x:
            self._refuse("convolves with a kernel computed from the images")
        if weight.dim() != 4:
            self._refuse(f"convolves over {weight.dim() - 2} dimensions instead of 2")
        if transposed:
            self._refuse("is a transposed convolution: it upsamples")
        self._must_not_pad(padding)
        extent = _each(lambda k, d: (k - 1) * d + 1, _two(weight.shape[2:]), _two(dilation))
        field: Field = self._fields[x]
        return field.after_window(extent, _two(stride))

    def _pool(self, name: str, args: tuple[Any, ...], shape: torch.Size) -> Field:
        x, kernel = args[0], _two(args[1])
        stride = _two(args[2]) if len(args) > 2 and args[2] else kernel
        self._must_not_pad(args[3] if len(args) > 3 else (0, 0))
        # max_pool2d(x, k, s, padding, dilation, ceil_mode); avg_pool2d(x, k, s, padding, ceil_mode)
        dilation = (1, 1)
        if name.startswith("max"):
            dilation = _two(args[4]) if len(args) > 4 else dilation
            ceil_mode = len(args) > 5 and args[5]
        else:
            ceil_mode = len(args) > 4 and args[4]
        extent = _each(lambda k, d: (k - 1) * d + 1, kernel, dilation)
        rest = _each(lambda n, k, s: (n - k) % s, _two(shape[-2:]), extent, stride)
        if ceil_mode and rest != (0, 0):
            self._refuse(f"lets windows hang over the border (ceil_mode, {rest} pixels left)")
        field: Field = self._fields[x]
        return field.after_window(extent, stride)

    def _must_not_pad(self, padding: Sequence[int]) -> None:
        if any(padding):
            self._refuse(
                f"has padding {_two(padding)}: locations at the border see less than the others"
            )

    def _slice(self, args: tuple[Any, ...], shape: torch.Size, field: Field) -> Field:
        dim, start, _, step = args[1:] + (0, None, None, 1)[len(args) - 1 :]
        axis = dim % len(shape) - (len(shape) - 2)
        if axis < 0:
            return field
        start = start or 0
        start = max(0, start + shape[dim]) if start < 0 else start
        offset, stride = list(field.offset), list(field.stride)
        offset[axis] += start * stride[axis]
        stride[axis] *= step
        return Field(field.size, _two(stride), _two(offset))

    def _batch_norm(self, name: str, args: tuple[Any, ...], field: Field) -> Field:
        no_training = name == "_native_batch_norm_legit_no_training"
        if not no_training and (args[5] is True or len(args) < 8):
            self._refuse("normalises by statistics of the batch, which see whole images")
        return field

    def _reduction(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        shape: torch.Size,
        field: Field,
    ) -> Field | None:
        names = [argument.name for argument in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | kwargs
        dims = given.get("dim")
        if "adaptive" not in func.__name__ and dims not in (None, []):
            listed = [dims] if isinstance(dims, int) else dims
            if all(d % len(shape) < len(shape) - 2 for d in listed):
                return field
        if any(isinstance(module, self._gates) for _, module in self._running):
            return None
        return self._refuse(
            "pools over the whole map; if it computes channel gates, as squeeze-and-excitation "
            "does, name its type in `gates` to hold them fixed"
        )

    def _must_not_touch(self, name: str, dims: int | Sequence[int], shape: torch.Size) -> None:
        for dim in [dims] if isinstance(dims, int) else dims:
            if dim % len(shape) >= len(shape) - 2:
                self._refuse(f"mixes locations ({name} along dimension {dim})")

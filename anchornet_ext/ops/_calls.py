"""What a call of an operator costs before its kernel runs, kept low.

A batch of one small image is finished in some microseconds, and so long take a few small tensor
operations, or torch's Python layer for gradients, as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def call(op: Callable[..., Any], *arguments: Any) -> Any:
    """`op(*arguments)`, past the layer for gradients where none is wanted.

    That layer is Python for operators of the stable ABI; it would find out the same, and then go on
    below autograd just like this. Inference mode leaves it out by itself.

    Raises:
        NotImplementedError: an argument has a forward-mode gradient. Below autograd it would be
            dropped, and what comes after would take it for zero.
    """
    refuse_tangents(op, arguments)
    if (
        torch.compiler.is_compiling()
        or torch.is_inference_mode_enabled()
        or (
            torch.is_grad_enabled()
            and any(isinstance(value, Tensor) and value.requires_grad for value in arguments)
        )
    ):
        return op(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)


def call_checked(op: Any, *arguments: Any) -> Any:
    """`call` of an operator whose kernel checks its arguments, with messages "NAME: ...".

    Raises:
        ValueError: of one line, what the kernel refused.
        NotImplementedError: see `call`.
    """
    try:
        return call(op, *arguments)
    except RuntimeError as error:
        name = op._schema.name.rpartition("::")[2]
        if f"{name}: " not in str(error):
            raise
        raise ValueError(str(error).split("\n")[0]) from error


#: Of the operators for small maps.
MAP_DTYPES = (torch.float32, torch.bfloat16)


def check_map_dtype(
    name: str, dtype: torch.dtype, dtypes: Sequence[torch.dtype] = MAP_DTYPES
) -> None:
    """Raises TypeError unless `dtype` is one of `dtypes`."""
    if dtype not in dtypes:
        wanted = " or ".join(str(one).removeprefix("torch.") for one in dtypes)
        raise TypeError(f"{name} must be {wanted}, got {dtype}")


def check_cpu_maps(
    name: str, maps: Tensor, dtypes: Sequence[torch.dtype] = (torch.float32,)
) -> None:
    """Raises unless `maps` may go to an operator for (B, C, H, W) on the CPU alone.

    Raises:
        TypeError: not of one of `dtypes`.
        ValueError: not of four dimensions, or on another device; meta stands for the CPU.
    """
    check_map_dtype(name, maps.dtype, dtypes)
    if maps.dim() != 4:
        raise ValueError(f"{name} must be (B, C, H, W), got {tuple(maps.shape)}")
    if maps.device.type not in ("cpu", "meta"):
        raise ValueError(f"{name} must be on the CPU, got {maps.device}")


def refuse_tangents(op: object, arguments: Sequence[Any]) -> None:
    """Raises NotImplementedError if one of the tensors has a forward-mode gradient."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    for value in arguments:
        if not isinstance(value, Tensor):
            continue
        dual = forward_ad.unpack_dual(value)  # type: ignore[no-untyped-call]
        if dual.tangent is not None:
            raise NotImplementedError(
                f"{op} has no forward-mode derivative (torch.func.jvp, torch.autograd.forward_ad)"
            )


_KEPT: dict[tuple[Any, ...], Tensor] = {}
_MAX_KEPT = 64


def _kept(key: tuple[Any, ...], make: Callable[[], Tensor], like: Tensor) -> Tensor:
    """`make()`, or what it was before for the same key. Nobody writes to such a tensor.

    It is not kept where torch traces or pretends, nor where torch.func wraps it for the time of a
    transform, nor while a CUDA graph is captured, whose memory goes with the graph. Nothing is ever
    thrown out, since another stream may still be reading it.
    """
    if torch.compiler.is_compiling() or type(like) is not Tensor:
        return make()
    tensor = _KEPT.get(key)
    if tensor is None:
        with torch.inference_mode(False):  # so that it may be saved for a gradient
            tensor = make()
        capturing = like.is_cuda and torch.cuda.is_current_stream_capturing()
        wrapped = torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        plain = type(tensor) is Tensor and not wrapped
        if len(_KEPT) < _MAX_KEPT and not capturing and plain:
            _KEPT[key] = tensor
    return tensor


def numbers(values: Sequence[float], dtype: torch.dtype, like: Tensor) -> Tensor:
    """(len(values),) on the device of `like`. The copy to a device is waited for."""
    key = (*values, dtype, like.device)
    return _kept(key, lambda: torch.tensor(values, dtype=dtype, device=like.device), like)


def no_index(like: Tensor) -> Tensor:
    """(0,) int64 on the device of `like`."""
    make = functools.partial(torch.empty, 0, dtype=torch.int64, device=like.device)
    return _kept(("no index", like.device), make, like)


def images_in_turn(num_images: int, repeats: int, like: Tensor) -> Tensor:
    """0, ..., 0, 1, ..., 1, ... with `repeats` of each, on the device of `like`."""

    def make() -> Tensor:
        index = torch.arange(num_images, device=like.device)
        return index if repeats == 1 else index[:, None].expand(-1, repeats).reshape(-1)

    # On a device another stream could meet it before it is there, and it would be of no use.
    if like.device.type != "cpu" or num_images * repeats > 1 << 14:
        return make()
    return _kept((num_images, repeats), make, like)

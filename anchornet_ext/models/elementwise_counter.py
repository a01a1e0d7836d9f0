"""The operations beside products that the tables of MSDNet and RANet count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class ElementwiseCounter(TorchDispatchMode):
    """Counts activations, pooling and biases of linear layers while it is active.

    One for each value that a ReLU reads, for each value that a window of a pooling reads (so
    overlapping windows count a value again) and for each bias that a linear layer adds. Biases of
    convolutions and batch norm count nothing: the authors of those tables left them out.

    Attributes:
        operations: counted so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        count = _COUNTS.get(func.overloadpacket)
        if count is not None:
            self.operations += count(args, result)
        return result


def _read(args: tuple[Any, ...], result: Any) -> int:
    return int(args[0].numel())


def _window(args: tuple[Any, ...], result: Any) -> int:
    pooled: Tensor = result[0] if isinstance(result, tuple) else result
    kernel = args[1]
    height, width = kernel if len(kernel) == 2 else (kernel[0], kernel[0])
    return pooled.numel() * int(height) * int(width)


def _made(args: tuple[Any, ...], result: Any) -> int:
    return int(result.numel())


_aten = torch.ops.aten
_COUNTS: dict[Any, Callable[[tuple[Any, ...], Any], int]] = {
    _aten.relu: _read,
    _aten.relu_: _read,
    _aten.mean: _read,  # global average pooling
    _aten.max_pool2d_with_indices: _window,
    _aten.avg_pool2d: _window,
    _aten.addmm: _made,
}

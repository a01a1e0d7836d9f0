"""When the layers for inference may call this package's kernels and oneDNN's instead of PyTorch's.

Such a call gives the same values up to rounding, and nothing but values: no gradient, and no node
that somebody who watches the calls could see. Each layer asks here, and is otherwise what it was.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.autograd import forward_ad

from anchornet_ext import _extension
from anchornet_ext.ops._calls import MAP_DTYPES


def runs_natively(input: Tensor) -> bool:
    """Whether nothing but the values is wanted: nobody traces, watches, pretends or maps.

    One answer holds for all that a network computes from `input`.
    """
    return (
        input.is_cpu
        and type(input) is Tensor
        and not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and not torch.is_autocast_enabled("cpu")
        and forward_ad._current_level < 0  # a forward-mode gradient would be lost
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
    )


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether a result of these would have one."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


@functools.cache
def has_fast_kernels(dtype: torch.dtype = torch.float32) -> bool:
    """Whether `convolve_maps` was built, has the instructions that it was measured with, and
    oneDNN has none that are several times as fast."""
    return has_map_kernels(dtype) and not (dtype == torch.bfloat16 and _has_matrix_unit())


@functools.cache
def has_map_kernels(dtype: torch.dtype) -> bool:
    """Whether `convolve_maps` was built and has the instructions that it was measured with."""
    capability = torch.backends.cpu.get_cpu_capability()
    if dtype not in MAP_DTYPES or not _extension.available():
        return False
    return capability.startswith("AVX512") and (
        dtype == torch.float32 or _extension.has_bfloat_products()
    )


def _has_matrix_unit() -> bool:
    """Whether the processor multiplies matrices of bfloat16 by a unit of its own (AMX), as oneDNN
    does and this package does not: ResNet-50 takes half the time by it."""
    asked = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return asked is not None and bool(asked())


def version_of(parameter: Tensor) -> int:
    """Another number once it was written to.

    Loading a state dict writes into the tensor, which counts that outside of inference mode.
    """
    return -1 if parameter.is_inference() else parameter._version

"""Runs a network for its shapes alone."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


def meta_twin(module: nn.Module) -> nn.Module:
    """A copy of `module` without weights, on the meta device, in evaluation mode, without hooks.

    Whatever is done to the twin, `module` keeps its mode, its hooks and its tensors, and no memory
    is spent on a second set of weights.

    Raises:
        TypeError: `module` is no plain module (a TorchScript one, for example).
    """
    if isinstance(module, torch.jit.ScriptModule) or not isinstance(module, nn.Module):
        raise TypeError(f"expected a torch.nn.Module, got {type(module).__name__}")
    module = getattr(module, "_orig_mod", module)  # below torch.compile's wrapper
    # Tensors named in the memo are not copied but replaced.
    memo: dict[int, Any] = {}
    for owner in module.modules():
        for tensor in (
            *owner._parameters.values(),
            *owner._buffers.values(),
            *vars(owner).values(),
        ):
            if isinstance(tensor, Tensor):
                memo[id(tensor)] = _on_meta(tensor)
    twin = copy.deepcopy(module, memo).eval()
    for owner in twin.modules():
        for hooks in (
            owner._forward_pre_hooks,
            owner._forward_hooks,
            owner._backward_hooks,
            owner._backward_pre_hooks,
        ):
            hooks.clear()
    return twin


def _on_meta(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=False)
    return empty


def meta_images(module: nn.Module, size: tuple[int, ...]) -> Tensor:
    """Images of `size` on the meta device in the dtype of the parameters of `module`."""
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    return torch.empty(size, dtype=dtype, device="meta")

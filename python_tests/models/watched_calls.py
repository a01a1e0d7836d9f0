"""Calls of a network that somebody watches: what it gives then, it gives by PyTorch's operators."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def counted(network: nn.Module, x: Tensor) -> Tensor:
    """While PyTorch counts the operations."""
    with FlopCounterMode(display=False) as counter:
        out: Tensor = network(x)
    assert counter.get_total_flops() > 0
    return out


def compiled(network: nn.Module, x: Tensor) -> Tensor:
    """In somebody else's compiled code."""
    out: Tensor = torch.compile(network, fullgraph=True, backend="eager")(x)
    return out


def traced(network: nn.Module, x: Tensor) -> Tensor:
    """As TorchScript."""
    out: Tensor = torch.jit.trace(network, x, check_trace=False)(x)
    return out

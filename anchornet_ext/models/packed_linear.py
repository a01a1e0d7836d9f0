"""Linear layers whose weights lie in the order in which this package's products read them.

A classifier holds up to half of a small network's weights, and multiplies few images with them:
PyTorch's product takes two to three times as long, as measured in float32 on AVX-512 for 2 to 256
images (1.2 times for one).
"""

from __future__ import annotations

import sys
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from anchornet_ext.ops import Convolution, PackedLayers, inverted_residuals, pack_layers

from .native_calls import has_fast_kernels, runs_natively, version_of, wants_gradient
from .packed_weights import KeepsPacked

#: With fewer weights the call is what takes long.
FEWEST_WEIGHTS = 1 << 15


def pack_linears(network: nn.Module) -> int:
    """Makes every large `nn.Linear` in `network` a `PackedLinear`, in place.

    Returns:
        How many there were; none where PyTorch's are as fast.
    """
    if not has_fast_kernels():
        return 0
    found = [
        module
        for module in network.modules()
        if is_plain_linear(module) and module.weight.numel() >= FEWEST_WEIGHTS
    ]
    for module in found:
        module.__class__ = PackedLinear  # with its parameters, hooks and places
    return len(found)


def is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether that is torch's linear layer, or timm's, which differs in TorchScript only.

    Somebody's own may do something else with its weight.
    """
    # Who has a layer of timm's has imported it.
    of_timm = getattr(sys.modules.get("timm.layers.linear"), "Linear", None)
    return type(module) is nn.Linear or (of_timm is not None and type(module) is of_timm)


class PackedLinear(KeepsPacked, nn.Linear):
    """`nn.Linear` for inference on a CPU, with the same results up to rounding.

    `weight` and `bias` stay what they are and may be replaced or moved; their copy in the kernels'
    order is made at the first call, and again when they have changed. Where gradients are wanted,
    under autocast, while PyTorch compiles or exports, on another device, in another dtype than
    float32 and for anything but (B, in_features), it is `nn.Linear`.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self._runs_packed(input):
            return super().forward(input)
        known: _Known | None = self.__dict__.get("_known")
        if known is None or not known.is_of(self.weight, self.bias):
            known = self.__dict__["_known"] = _Known.made(self.weight, self.bias)
        return inverted_residuals(input[:, :, None, None], known.packed).flatten(1)

    def _runs_packed(self, input: Tensor) -> bool:
        return (
            runs_natively(input)
            and input.dim() == 2
            and input.dtype == torch.float32
            and input.shape[0] > 0
            and input.shape[1] == self.in_features  # else the usual error
            and all(p is None or _is_plain(p) for p in (self.weight, self.bias))
            and not wants_gradient(input, self.weight, self.bias)
            and has_fast_kernels()
        )


class _Known(NamedTuple):
    """Packed parameters, and what they are a copy of."""

    weight: Tensor
    bias: Tensor | None
    versions: tuple[int, int]
    packed: PackedLayers

    @classmethod
    def made(cls, weight: Tensor, bias: Tensor | None) -> _Known:
        matrix = weight.detach()[:, :, None, None]
        packed = pack_layers([Convolution(matrix, None if bias is None else bias.detach())])
        return cls(weight, bias, _versions(weight, bias), packed)

    def is_of(self, weight: Tensor, bias: Tensor | None) -> bool:
        return (
            self.weight is weight and self.bias is bias and self.versions == _versions(weight, bias)
        )


def _is_plain(parameter: Tensor) -> bool:
    return parameter.is_cpu and parameter.dtype == torch.float32


def _versions(weight: Tensor, bias: Tensor | None) -> tuple[int, int]:
    return version_of(weight), -1 if bias is None else version_of(bias)

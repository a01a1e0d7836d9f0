"""Convolutions whose weights lie in the order in which the CPU's kernels read them.

oneDNN, which PyTorch's convolutions on a CPU are, wants the weights in blocks that fit the vector
registers. `torch.nn.functional.conv2d` is given them in rows, so it brings them into that order at
every call: for one image of 95x95, whose last feature maps have 3x3 pixels, that is most of the
time. On one thread PyTorch then even leaves oneDNN for a slower convolution of its own. Here the
weights are brought into order once.

On maps of few pixels oneDNN stays far below the processor's rate even so; these are this package's
own convolutions (`ops.convolve_maps`), with weights in another order.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Literal

import torch
from torch import Tensor, nn

from anchornet_ext.ops import MapWeights, convolve_maps, pack_maps

from .native_calls import has_fast_kernels, runs_natively, version_of, wants_gradient
from .packed_weights import KeepsPacked

Activation = Literal["none", "relu"]

#: For how many kinds of work a convolution remembers the order of its weights.
_MAX_KNOWN = 64
#: Below, oneDNN is faster on maps of any size.
_FEWEST_CHANNELS, _LEAST_DEPTH = 16, 256


def pack_convolutions(network: nn.Module) -> int:
    """Makes every plain `nn.Conv2d` in `network` a `PackedConv2d`, in place.

    The weights are shared with nothing new, and a module that stands in several places stays one.

    Returns:
        How many there were.
    """
    found = [module for module in network.modules() if _can_be_packed(module)]
    for module in found:
        module.__class__ = PackedConv2d  # with its parameters, hooks and places
    return len(found)


class PackedConv2d(KeepsPacked, nn.Conv2d):
    """`nn.Conv2d` for inference on a CPU, with the same results up to rounding.

    `weight` stays what it is and may be replaced or moved; its copy in the kernels' order is made
    at the first call for a kind of work, and again when it has changed. Where gradients are wanted,
    forward-mode ones among them, under autocast, while PyTorch compiles or exports, on another
    device, and in a dtype that the processor's oneDNN has no kernels for, it is `nn.Conv2d`.

    Attributes:
        is_frozen: whether PyTorch compiles it with frozen weights, for a processor that
            `convolve_maps` is fast on. Then the code has that operator for maps that are small in
            batches of any size, and the order of its weights is computed while it compiles.
    """

    is_frozen = False

    def forward(self, input: Tensor) -> Tensor:
        if torch.compiler.is_compiling() and self.is_frozen and self._is_small_in_batches(input):
            return self._convolve_maps(input, pack_maps(self.weight))
        if not (runs_natively(input) and self._takes(input)):
            return super().forward(input)
        return self._run_packed(input)

    def run_fused(
        self, input: Tensor, add: Tensor | None = None, activation: Activation = "none"
    ) -> Tensor:
        """``activation(convolution of the input + add)``, in as few operations as can be.

        For callers that have asked `runs_natively` already: of their own input, say.

        Args:
            add: whatever can be added to the result.
        """
        fits = self._takes(input) and (
            add is None or (add.dtype == input.dtype and add.shape == self._output_shape(input))
        )
        if fits:
            return self._run_packed(input, add, activation)
        out = super().forward(input)
        if add is not None:
            out = out + add
        return out.relu() if activation == "relu" else out

    def _run_packed(
        self, input: Tensor, add: Tensor | None = None, activation: Activation = "none"
    ) -> Tensor:
        known = self._known_orders()
        if self._is_small(input):
            if known.of_maps is None:
                known.of_maps = pack_maps(self.weight.detach())
            return self._convolve_maps(input, known.of_maps, add, activation)
        weights = self._packed(known, input)
        where = (self.padding, self.stride, self.dilation, self.groups)
        out: Tensor
        if add is None:
            out = torch.ops.mkldnn._convolution_pointwise.default(
                input, weights, self.bias, *where, "none", [], ""
            )
        else:
            out = torch.ops.mkldnn._convolution_pointwise.binary(
                input, add, weights, self.bias, *where, "add", None, None, [], None
            )
        # Not by oneDNN, whose ReLU makes NaN a zero: a network that diverged would be sure of its
        # answers. What that costs is in docs/decisions.md.
        return out.relu_() if activation == "relu" else out

    def _convolve_maps(
        self,
        input: Tensor,
        weights: MapWeights,
        add: Tensor | None = None,
        activation: Activation = "none",
    ) -> Tensor:
        return convolve_maps(
            input,
            weights,
            self.bias,
            stride=self.stride,
            padding=self.padding,  # type: ignore[arg-type]  # no string can be packed
            dilation=self.dilation,
            add=add,
            activation=activation,
        )

    def _takes(self, input: Tensor) -> bool:
        """Whether this is work for the packed weights, asked at every call."""
        weight = self.weight
        return (
            weight.is_cpu
            and input.dtype == weight.dtype
            and input.dim() == 4
            and input.shape[0] > 0
            and input.shape[1] == self.in_channels  # else the usual error
            # On a single pixel, as of the gates of squeeze-and-excitation, this takes longer;
            # without any it is the usual error.
            and input.shape[2] * input.shape[3] > 1
            and not wants_gradient(input, weight, self.bias)
            and _has_kernels(input.dtype)
        )

    def _is_small(self, input: Tensor) -> bool:
        """Whether `convolve_maps` is the faster: as measured on AVX-512, in bfloat16 with its
        products."""
        if not self._is_deep() or not has_fast_kernels(input.dtype):
            return False
        rows, columns = self._output_size(input)
        pixels = rows * columns
        if rows < 1 or columns < 1:
            return False  # the usual error
        taps = self._taps()
        # Larger maps with a few images only.
        return pixels <= (64 if taps == 1 else 36) or (
            pixels <= (200 if taps == 1 else 144) and pixels * input.shape[0] <= 800
        )

    def _is_small_in_batches(self, input: Tensor) -> bool:
        """Whether `convolve_maps` is the faster for any number of images, if it is fast at all."""
        if not self._is_deep() or not (input.is_cpu and input.dtype == self.weight.dtype):
            return False
        if input.dim() != 4 or input.shape[1] != self.in_channels:
            return False  # the usual error
        rows, columns = self._output_size(input)
        return rows > 0 and columns > 0 and rows * columns <= (64 if self._taps() == 1 else 36)

    def _is_deep(self) -> bool:
        """Whether sums of `convolve_maps` are long enough: with fewer summands they are started and
        stored more often than they are added to."""
        enough = self._taps() * self.in_channels >= _LEAST_DEPTH
        return enough and self.groups == 1 and self.in_channels >= _FEWEST_CHANNELS

    def _taps(self) -> int:
        return self.kernel_size[0] * self.kernel_size[1]

    def _output_size(self, input: Tensor) -> tuple[int, int]:
        height, width = (
            (input.shape[2 + d] + 2 * int(self.padding[d]) - self.dilation[d] * (kernel - 1) - 1)
            // self.stride[d]
            + 1
            for d, kernel in enumerate(self.kernel_size)
        )
        return height, width

    def _output_shape(self, input: Tensor) -> tuple[int, ...]:
        return (input.shape[0], self.out_channels, *self._output_size(input))

    def _known_orders(self) -> _Known:
        weight = self.weight
        version = version_of(weight)
        known: _Known | None = self.__dict__.get("_known")
        if known is None or known.weight is not weight or known.version != version:
            known = self.__dict__["_known"] = _Known(weight, version)
        return known

    def _packed(self, known: _Known, input: Tensor) -> Tensor:
        """The weights in the order for this size of map, batch (roughly) and number of threads.

        A kernel that is given another order than its own reorders them at every call.
        """
        batch, _, height, width = input.shape
        work = (height, width, batch.bit_length(), torch.get_num_threads())
        packed = known.packed.get(work)
        if packed is None:
            packed = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight.detach(),
                self.padding,
                self.stride,
                self.dilation,
                self.groups,
                list(input.shape),
            )
            packed = known.add(work, packed)
        return packed


class _Known:
    """The orders that a weight was brought into, each kept once.

    Attributes:
        weight, version: what they are orders of.
        packed: oneDNN's, by the kind of work.
        of_maps: that of `convolve_maps`, for all kinds; None before it was wanted.
    """

    def __init__(self, weight: Tensor, version: int) -> None:
        self.weight = weight
        self.version = version
        self.packed: dict[tuple[int, ...], Tensor] = {}
        self.of_maps: MapWeights | None = None

    def add(self, work: tuple[int, ...], packed: Tensor) -> Tensor:
        """What is to be used for this work: `packed`, or the same that is there already.

        Other threads may do so at the same time, so nothing of the dictionary is relied on.
        """
        # Most kinds of work share an order, and the weights are most of what a network weighs.
        known = list(self.packed.items())
        packed = next((other for _, other in known if _equal_bytes(packed, other)), packed)
        if len(known) >= _MAX_KNOWN:
            self.packed.pop(known[0][0], None)
        self.packed[work] = packed
        return packed


def _equal_bytes(a: Tensor, b: Tensor) -> bool:
    """Whether two of oneDNN's own tensors, which PyTorch cannot look into, hold the same bytes."""
    size = torch.ops.mkldnn._nbytes(a)
    if torch.ops.mkldnn._nbytes(b) != size:
        return False
    pointers = (torch.ops.mkldnn.data_ptr(tensor) for tensor in (a, b))
    views = ((ctypes.c_uint8 * size).from_address(pointer) for pointer in pointers)
    first, second = (torch.frombuffer(view, dtype=torch.uint8) for view in views)
    return torch.equal(first, second)


def _can_be_packed(module: nn.Module) -> bool:
    return (
        # Somebody's own convolution may do something else with its weight.
        type(module) is nn.Conv2d
        and module.padding_mode == "zeros"
        and not isinstance(module.padding, str)
        and module.in_channels > 0
        and module.out_channels > 0
    )


@functools.cache
def _has_kernels(dtype: torch.dtype) -> bool:
    """Whether oneDNN convolves in this dtype, on this processor and in this build of PyTorch."""
    operators = ("_convolution_pointwise", "_reorder_convolution_weight", "data_ptr", "_nbytes")
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in operators):
        return False
    if dtype == torch.float32:
        return True
    supported = {
        torch.bfloat16: "_is_mkldnn_bf16_supported",
        torch.float16: "_is_mkldnn_fp16_supported",
    }.get(dtype)
    return supported is not None and bool(getattr(torch.ops.mkldnn, supported)())

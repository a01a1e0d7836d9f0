"""What the machine can do at the moment of measuring: reading, moving and multiplying.

The calls here take turns with what is measured, so that both see the same machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from anchornet_ext.evaluation.timing import Timing, device_of

#: Larger than the last-level cache of common processors (an H200's second-level cache included).
CACHE_FLUSH_BYTES = 256 << 20
#: The floors' names among what takes turns.
MOVING, PRODUCT, CONVOLUTION = "floor: moving", "floor: matrix product", "floor: convolution"
_SIDE = 1024  # of the matrices
_CHANNELS, _CONVOLVED = (256, 512), 30  # in and out, and the side of the result
#: Multiply-adds of one call.
PRODUCT_MACS = {PRODUCT: _SIDE**3, CONVOLUTION: _CHANNELS[0] * _CHANNELS[1] * 9 * _CONVOLVED**2}


def flush_caches(device: torch.device | str | None = None) -> Callable[[], None]:
    """A function that pushes everything else out of the caches; for measuring cold reads."""
    buffer = torch.zeros(CACHE_FLUSH_BYTES // 4, device=device_of(device))

    def flush() -> None:
        buffer.add_(1)

    return flush


def reader(size: int, device: torch.device | str | None = None) -> Callable[[], Tensor]:
    """A call that reads `size` bytes once and does next to nothing else: a sum of float32."""
    buffer = torch.ones(max(1, size // 4), device=device_of(device))
    return lambda: buffer.sum()


def mover(
    num_read: int, num_written: int, device: torch.device | str | None = None
) -> Callable[[], Tensor]:
    """A call that reads and writes so many bytes, into a new tensor, as operators do."""
    source = torch.ones(max(4, num_read), dtype=torch.uint8, device=device_of(device))
    both = min(len(source), num_written)
    rest = source[both:][: (len(source) - both) // 4 * 4].clone().view(torch.float32)

    def move() -> Tensor:
        target = torch.empty(num_written, dtype=torch.uint8, device=source.device)
        target[:both].copy_(source[:both])
        if num_written > both:
            target[both:].fill_(1)
        elif len(rest):
            rest.sum()
        return target

    return move


def products(
    dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> dict[str, Callable[[], Tensor]]:
    """Name -> a call of `PRODUCT_MACS[name]` multiply-adds and little else.

    On the CPU two libraries do them, and which is the faster depends on the processor: on an AMD
    EPYC with AVX-512 a convolution (oneDNN) was seen to run at twice the rate of a product of
    matrices (MKL).
    """
    device = device_of(device)
    matrix = torch.randn(_SIDE, _SIDE, device=device).to(dtype)
    calls: dict[str, Callable[[], Tensor]] = {PRODUCT: lambda: matrix @ matrix}
    if device.type == "cpu":
        side = _CONVOLVED + 2  # no padding
        images = torch.randn(1, _CHANNELS[0], side, side).to(dtype)
        images = images.contiguous(memory_format=torch.channels_last)
        weight = torch.randn(_CHANNELS[1], _CHANNELS[0], 3, 3).to(dtype)
        weight = weight.contiguous(memory_format=torch.channels_last)
        calls[CONVOLUTION] = lambda: torch.nn.functional.conv2d(images, weight)
    return calls


@dataclass(frozen=True)
class Work:
    """What any implementation has to do for a batch, at least.

    Attributes:
        read: bytes.
        written: bytes, into a new tensor; 0 where the result is small.
        macs: multiply-adds.
        dtype: of the multiply-adds.
    """

    read: int = 0
    written: int = 0
    macs: int = 0
    dtype: torch.dtype = torch.float32

    def contenders(self, device: torch.device) -> dict[str, Callable[[], object]]:
        """What must take turns with the measured for `floor` to be known."""
        calls: dict[str, Callable[[], object]] = {}
        if self.written:
            calls[MOVING] = mover(self.read, self.written, device)
        elif self.read:
            calls[MOVING] = reader(self.read, device)
        if self.macs:
            calls |= products(self.dtype, device)
        return calls

    def floor(self, times: Mapping[str, Timing]) -> Timing | None:
        """The longer of moving the bytes and doing the arithmetic, each at torch's own best rate.

        Args:
            times: of `contenders`, by their names.

        Returns:
            Seconds of a batch; None where one of them could not be measured or there is no work.
        """
        known = []
        if self.read or self.written:
            known.append(times.get(MOVING))
        if self.macs:
            known.append(self._arithmetic(times))
        found = [time for time in known if time is not None]
        if not found or len(found) < len(known):
            return None
        return max(found, key=lambda time: time.median)

    def _arithmetic(self, times: Mapping[str, Timing]) -> Timing | None:
        """At the faster rate."""
        scaled = [
            Timing(*(seconds * self.macs / macs for seconds in times[name]))
            for name, macs in PRODUCT_MACS.items()
            if name in times
        ]
        return min(scaled, key=lambda time: time.median, default=None)

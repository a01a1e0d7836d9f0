"""The images that a stream holds: those that have just arrived, and a row for each slot.

An image is copied when it arrives, so its source may use the memory again at once. Bytes stay bytes
until a pass takes them in: they need a quarter of the memory, and the passes normalise on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anchornet_ext.ops import gather_patches

if TYPE_CHECKING:
    from .two_stage import TwoStageClassifier


class SlotImages:
    """Images of one size: up to a batch that wait for the glance, and those that it left.

    All are of one type: bytes as long as only such have come, and from the first other one on the
    networks' type.

    Args:
        classifier: whose preprocessing, device and dtype hold.
        slots: images that the glance may have left. There is one row more, whose content does not
            matter, to fill up batches with.
        batch: images that may wait for the glance.
        image_size: (H, W).
        in_flight: on a GPU, batches that may be on their way to it.
    """

    def __init__(
        self,
        classifier: TwoStageClassifier,
        slots: int,
        batch: int,
        image_size: tuple[int, int],
        in_flight: int = 1,
    ) -> None:
        self._classifier = classifier
        parameter = next(classifier.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        self._arrived_shape = (batch, 3, *image_size)
        self._rows_shape = (slots + 1, 3, *image_size)
        self._size = image_size
        self._waiting = 0
        # Of a GPU's: which batches on the host may still be read from.
        self._turn = 0
        self._events: list[torch.cuda.Event | None] = [None] * (in_flight + 1)
        self._origin = torch.zeros(1, 2, dtype=torch.int64, device=self._device)
        self.is_bytes = True
        self._host: list[Tensor] = []  # (b, 3, H, W) each, by turns
        self._arrived: Tensor | None = None  # (b, 3, H, W) on the device
        self._rows: Tensor | None = None  # (S + 1, 3, H, W)

    def put(self, image: Tensor) -> bool:
        """Copies an image (3, H, W), uint8 or normalised, to the end of those that wait.

        Returns:
            Whether the type of all images changed with it, and so the memory that they are in.
        """
        changed = self._rows is None
        if changed:
            self.is_bytes = image.dtype == torch.uint8
            self._allocate()
        elif self.is_bytes and image.dtype != torch.uint8:
            self._become_floats()
            changed = True
        if not self.is_bytes and image.dtype == torch.uint8:
            image = self._normalise(image)
        if self._waiting == 0:
            event = self._events[self._turn]
            if event is not None:
                event.synchronize()  # of a transfer some batches ago: it is long done
        self._host[self._turn][self._waiting].copy_(image)
        self._waiting += 1
        return changed

    def take(self, count: int) -> None:
        """Puts the `count` images that wait where `arrived` is, and lets others wait.

        Raises:
            RuntimeError: another number of images waits.
        """
        if count != self._waiting:
            raise RuntimeError(f"{self._waiting} images wait for the glance, not {count}")
        self._waiting = 0
        host = self._host[self._turn]
        assert self._arrived is not None
        if self._arrived is not host:
            self._arrived[:count].copy_(host[:count], non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._device))
            self._events[self._turn] = event
            self._turn = (self._turn + 1) % len(self._host)

    def arrived(self, count: int) -> Tensor:
        """(count, 3, H, W): the images that were taken, and rows without a meaning behind them."""
        assert self._arrived is not None
        return self._arrived[:count]

    def keep(self, places: Sequence[int], rows: Sequence[int]) -> None:
        """Moves arrived images to their slots; on the CPU, where indexing is slower than this.

        Args:
            places: of images in `arrived`.
            rows: their slots, as many.
        """
        assert self._arrived is not None
        assert self._rows is not None
        for place, row in zip(places, rows, strict=True):
            self._rows[row].copy_(self._arrived[place])

    def keep_all(self, rows: Tensor) -> None:
        """Moves the first A arrived images to the slots `rows` (A,)."""
        assert self._arrived is not None
        assert self._rows is not None
        self._rows.index_copy_(0, rows, self._arrived[: len(rows)])

    def whole(self, rows: Tensor) -> Tensor:
        """(A, 3, H, W) of the slots `rows` (A,), normalised, in channels_last."""
        return self._cut(self._origin.expand(len(rows), 2), rows, self._size)

    def patches(self, top_left: Tensor, rows: Tensor) -> Tensor:
        """(A, 3, K, K) at `top_left` (A, 2) of the slots `rows` (A,), likewise."""
        size = self._classifier.patch_size
        return self._cut(top_left, rows, (size, size))

    def _cut(self, top_left: Tensor, rows: Tensor, size: tuple[int, int]) -> Tensor:
        assert self._rows is not None
        normalisation: dict[str, Any] = {}
        if self.is_bytes:
            normalisation = self._classifier.normalisation()
        return gather_patches(
            self._rows,
            top_left,
            size,
            image_index=rows,
            memory_format=torch.channels_last,
            **normalisation,
        )

    # The memory is written to in every pass, which may run in inference mode or not.
    @torch.inference_mode(False)
    def _allocate(self) -> None:
        dtype = torch.uint8 if self.is_bytes else self._dtype
        on_host = self._device.type == "cpu"
        count = 1 if on_host else len(self._events)
        self._host = [
            torch.empty(self._arrived_shape, dtype=dtype, pin_memory=not on_host)
            for _ in range(count)
        ]
        if on_host:
            self._arrived = self._host[0]
        else:
            self._arrived = torch.zeros(self._arrived_shape, dtype=dtype, device=self._device)
        self._rows = torch.empty(self._rows_shape, dtype=dtype, device=self._device)
        self._rows[-1] = 0

    def _become_floats(self) -> None:
        """Once at most: a source that mixes bytes and floats is not a usual one."""
        host, rows, turn = self._host, self._rows, self._turn
        assert rows is not None
        self.is_bytes = False
        self._allocate()
        assert self._rows is not None
        for source, target in zip(host, self._host, strict=True):
            target[: self._waiting].copy_(self._normalise(source[: self._waiting]))
        self._turn = turn
        for row, before in zip(self._rows, rows, strict=True):  # one by one: the least memory
            row.copy_(self._normalise(before))

    def _normalise(self, images: Tensor) -> Tensor:
        return self._classifier.preprocessing.normalise(images, self._dtype)

"""The images that a stream holds: those that wait for the glance, and a row for each slot.

Bytes stay bytes until a pass takes them in: they need a quarter of the memory, and the passes
normalise on the way.

Images that come together often leave together, at the glance. Copying them would take a tenth of
the time of a fast network, so on the CPU the glance reads them where their source has them, and
what it leaves is copied. The source may write to that memory as soon as it is asked for more:
before that, `secure` copies whatever still waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anchornet_ext.ops import gather_patches

from .kept_memory import borrow, give_back

if TYPE_CHECKING:
    from .two_stage import TwoStageClassifier


class SlotImages:
    """Images of one size: up to a batch that wait for the glance, and those that it left.

    All are of one type: bytes as long as only such have come, and from the first other one on the
    networks' type.

    Args:
        classifier: whose preprocessing, device and dtype hold; on the CPU, but see `FixedImages`.
        slots: images that the glance may have left. There is one row more, whose content does not
            matter, to fill up batches with.
        batch: images that may wait for the glance.
        image_size: (H, W).
    """

    def __init__(
        self,
        classifier: TwoStageClassifier,
        slots: int,
        batch: int,
        image_size: tuple[int, int],
    ) -> None:
        self._classifier = classifier
        parameter = next(classifier.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        self._batch_shape = (batch, 3, *image_size)
        self._rows_shape = (slots + 1, 3, *image_size)
        self._size = image_size
        self._origin = torch.zeros(1, 2, dtype=torch.int64, device=self._device)
        self._layout = torch.contiguous_format
        self._has_type = False
        self.is_bytes = True
        self._rows: Tensor | None = None  # (S + 1, 3, H, W)
        # Those that wait, in the order of their arrival: `_num_own` copies, and behind them others
        # in their source's memory.
        self._own: Tensor | None = None  # (b, 3, H, W)
        self._num_own = 0
        self._waiting: list[Tensor] = []  # (b, 3, H, W) each
        self._taken: list[Tensor] = []  # likewise, by the glance
        self._borrowed: list[Tensor] = []

    def put(self, images: Tensor) -> bool:
        """Lets images (B, 3, H, W), uint8 or normalised, wait behind those that do already.

        Returns:
            Whether the type of all images changed with it, and so the memory that they are in.
        """
        changed = not self._has_type
        if changed:
            self._has_type = True
            self.is_bytes = images.dtype == torch.uint8
            # As the source has them: to put every image in another order takes long.
            if not images.is_contiguous() and images.is_contiguous(
                memory_format=torch.channels_last
            ):
                self._layout = torch.channels_last
            self._prepare()
        elif self.is_bytes and images.dtype != torch.uint8:
            self._become_floats()
            changed = True
        self._add(images if self.is_bytes else self._as_floats(images))
        return changed

    def secure(self) -> None:
        """Copies the images that wait, so that their source may use its memory again."""
        for images in self._waiting:
            end = self._num_own + len(images)
            self._own_memory()[self._num_own : end].copy_(images)
            self._num_own = end
        self._waiting.clear()

    def take(self, count: int) -> None:
        """Lets the glance have the `count` images that wait, and lets others wait.

        Raises:
            RuntimeError: another number of images waits.
        """
        self._check_taken(count, self._num_own + sum(map(len, self._waiting)))
        side = self._classifier.glance_size
        others, height, width = count - self._num_own, *self._size
        if 0 < others * height * width < count * side * side:
            self.secure()  # less work than to put two parts of the glance's input together
        self._taken, self._waiting, self._num_own = self._in_order(), [], 0

    def glance_input(self, count: int) -> Tensor:
        """(count, 3, g, g): the images that were taken made small, and zeros behind them."""
        parts = [self._classifier.glance_input(images) for images in self._taken]
        missing = count - sum(map(len, parts))
        if missing > 0:
            parts.append(parts[0].new_zeros(missing, *parts[0].shape[1:]))
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts).contiguous(memory_format=torch.channels_last)

    def keep(self, places: Sequence[int], rows: Sequence[int]) -> None:
        """Copies taken images to their slots, and lets go of all that were taken.

        Args:
            places: of images among those that were taken, ascending.
            rows: their slots, as many.
        """
        taken, self._taken = self._taken, []
        if not places:
            return
        kept = self._kept_memory()
        ahead = 0
        wanted = list(zip(places, rows, strict=True))
        for images in taken:
            for place, row in wanted:
                if ahead <= place < ahead + len(images):
                    kept[row].copy_(images[place - ahead])
            ahead += len(images)

    def close(self) -> None:
        """Gives the memory to the next stream; there are no images any more."""
        self._waiting, self._taken = [], []
        self._own = self._rows = None
        while self._borrowed:
            give_back(self._classifier, self._borrowed.pop())

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

    def _add(self, images: Tensor) -> None:
        self._waiting.append(images.to(self._device))

    def _in_order(self) -> list[Tensor]:
        """(b, 3, H, W) each: all that wait."""
        if self._num_own == 0:
            return self._waiting
        return [self._own_memory()[: self._num_own], *self._waiting]

    def _check_taken(self, count: int, waiting: int) -> None:
        if count != waiting:
            raise RuntimeError(f"{waiting} images wait for the glance, not {count}")

    @property
    def _type(self) -> torch.dtype:
        return torch.uint8 if self.is_bytes else self._dtype

    def _borrow(self, shape: tuple[int, ...]) -> Tensor:
        tensor = borrow(self._classifier, shape, self._type, self._layout)
        self._borrowed.append(tensor)
        return tensor

    def _own_memory(self) -> Tensor:
        """Made when it is needed: whole batches come to the glance from where they are."""
        if self._own is None:
            self._own = self._borrow(self._batch_shape)
        return self._own

    def _kept_memory(self) -> Tensor:
        """Made when the glance leaves an image for the first time."""
        if self._rows is None:
            self._rows = self._borrow(self._rows_shape)
            self._rows[-1] = 0
        return self._rows

    def _prepare(self) -> None:
        """Called when the type of all images is known, or has changed."""

    def _become_floats(self) -> None:
        """Once at most: a source that mixes bytes and floats is not a usual one."""
        rows, self._rows = self._rows, None
        self.is_bytes = False
        self._prepare()
        if rows is not None:
            for row, before in zip(self._kept_memory(), rows, strict=True):  # the least memory
                row.copy_(self._as_floats(before))
        self._waiting = [self._as_floats(images) for images in self._in_order()]
        self._own, self._num_own = None, 0

    def _as_floats(self, images: Tensor) -> Tensor:
        if images.dtype == torch.uint8:
            return self._classifier.preprocessing.normalise(images, self._dtype)
        return images.to(self._dtype)


class FixedImages(SlotImages):
    """Images in memory that stays in its place: for a GPU, and for passes that are recorded.

    Images that arrive are copied at once, on a GPU into pinned memory, from where a batch is on its
    way while the next one arrives.

    Args:
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
        super().__init__(classifier, slots, batch, image_size)
        self._count = 0  # of those that wait
        # Of a GPU's: which batches on the host may still be read from.
        self._turn = 0
        self._events: list[torch.cuda.Event | None] = [None] * (in_flight + 1)
        self._host: list[Tensor] = []  # (b, 3, H, W) each, by turns
        self._arrived: Tensor | None = None  # (b, 3, H, W) on the device

    def secure(self) -> None:
        """Nothing to do: they are copied when they arrive."""

    def take(self, count: int) -> None:
        self._check_taken(count, self._count)
        self._count = 0
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

    def glance_input(self, count: int) -> Tensor:
        return self._classifier.glance_input(self.arrived(count))

    def keep(self, places: Sequence[int], rows: Sequence[int]) -> None:
        assert self._arrived is not None
        assert self._rows is not None
        for place, row in zip(places, rows, strict=True):
            self._rows[row].copy_(self._arrived[place])

    def keep_all(self, rows: Tensor) -> None:
        """Moves the first A arrived images to the slots `rows` (A,)."""
        assert self._arrived is not None
        assert self._rows is not None
        self._rows.index_copy_(0, rows, self._arrived[: len(rows)])

    def _add(self, images: Tensor) -> None:
        if self._count == 0:
            event = self._events[self._turn]
            if event is not None:
                event.synchronize()  # of a transfer some batches ago: it is long done
        end = self._count + len(images)
        self._host[self._turn][self._count : end].copy_(images)
        self._count = end

    # Memory is written to in every pass, which may run in inference mode or not.
    @torch.inference_mode(False)
    def _kept_memory(self) -> Tensor:
        if self._rows is None:
            self._rows = torch.empty(
                self._rows_shape, dtype=self._type, device=self._device, memory_format=self._layout
            )
            self._rows[-1] = 0
        return self._rows

    @torch.inference_mode(False)
    def _prepare(self) -> None:
        self._kept_memory()  # recorded passes know it
        on_host = self._device.type == "cpu"
        count = 1 if on_host else len(self._events)
        self._host = [
            torch.empty(
                self._batch_shape,
                dtype=self._type,
                pin_memory=not on_host,
                memory_format=self._layout,
            )
            for _ in range(count)
        ]
        self._arrived = self._host[0]
        if not on_host:
            self._arrived = torch.zeros(
                self._batch_shape, dtype=self._type, device=self._device
            ).contiguous(memory_format=self._layout)

    def _become_floats(self) -> None:
        host, turn = self._host, self._turn
        super()._become_floats()
        for source, target in zip(host, self._host, strict=True):
            target[: self._count].copy_(self._as_floats(source[: self._count]))
        self._turn = turn

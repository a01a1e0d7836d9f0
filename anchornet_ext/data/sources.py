"""Where decoded photos come from: the disk each time, or memory after the first time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from .photos import read_photo
from .transforms import MAX_ASPECT_RATIO, to_uint8_tensor

# Photos are packed into blocks of this many bytes: few Python objects, so that forked workers
# share the pages instead of copying them when reference counts change.
_BLOCK_BYTES = 64 * 2**20


class UnreadableImage(OSError):
    """A photo that does not decode; the message is its path and the reason."""


class ImageSource(Protocol):
    """Decoded photos by index."""

    def __len__(self) -> int: ...

    def load(self, index: int) -> Tensor:
        """uint8 (3, H, W), memory in (H, W, 3) order. Raises UnreadableImage."""
        ...


def decode(path: str, max_short_side: int | None = None) -> Tensor:
    """One photo as uint8 (3, H, W), shrunk so that its short side is at most `max_short_side`.

    Raises:
        UnreadableImage: the file is missing, damaged, or not an image.
    """
    try:
        image = to_uint8_tensor(read_photo(path))
    except Exception as error:  # decoders raise anything from OSError to struct.error
        reason = str(error) or type(error).__name__
        named = reason if path in reason else f"{path}: {reason}"
        raise UnreadableImage(named) from error
    height, width = image.shape[-2:]
    short = min(height, width)
    if max(height, width) > MAX_ASPECT_RATIO * short:
        raise UnreadableImage(f"{path}: {width} x {height} pixels is a line, not a photo")
    if max_short_side is None or short <= max_short_side:
        return image
    scale = max_short_side / short
    size = [max(1, round(height * scale)), max(1, round(width * scale))]
    resized: Tensor = F.resize(image, size, antialias=True)
    return resized


class FileSource:
    """Decodes a photo whenever it is asked for."""

    def __init__(self, paths: Sequence[str], max_short_side: int | None = None) -> None:
        # One array of bytes rather than a list of strings, for the same reason as the blocks.
        self._paths = np.array([os.fsencode(path) for path in paths])
        self._max_short_side = max_short_side

    def __len__(self) -> int:
        return len(self._paths)

    def load(self, index: int) -> Tensor:
        return decode(os.fsdecode(self._paths[index]), self._max_short_side)


class CachedSource:
    """Decodes every photo once, at construction, and keeps the pixels in memory.

    Args:
        paths: the photos.
        max_short_side: shrink larger photos to this short side, in pixels, before keeping them.
        threads: how many decode at a time.
        on_progress: called after each photo with how many are done.

    Attributes:
        unreadable: index -> why that photo could not be read.

    Raises:
        MemoryError: the photos would not fit into the memory that is free.
    """

    def __init__(
        self,
        paths: Sequence[str],
        max_short_side: int | None = None,
        *,
        threads: int = 2,
        on_progress: Callable[[int], None] | None = None,
    ) -> None:
        self.unreadable: dict[int, str] = {}
        self._blocks: list[Tensor] = []
        self._used = _BLOCK_BYTES  # of the last block; there is none yet
        # block, offset, height, width of every photo; block -1: unreadable
        self._where = np.full((len(paths), 4), -1, dtype=np.int64)
        chunk = 256
        total = 0
        with ThreadPoolExecutor(max(1, threads)) as pool:
            # Chunks bound how many decoded photos wait to be packed.
            for begin in range(0, len(paths), chunk):
                part = paths[begin : begin + chunk]
                for i, image in enumerate(
                    pool.map(lambda path: _try_decode(path, max_short_side), part), begin
                ):
                    if isinstance(image, str):
                        self.unreadable[i] = image
                    else:
                        self._keep(i, image)
                        total += image.numel()
                    if on_progress is not None:
                        on_progress(i + 1)
                if begin == 0:
                    _check_memory(total * len(paths) // max(1, len(part)))

    def _keep(self, index: int, image: Tensor) -> None:
        size = image.numel()
        if self._used + size > _BLOCK_BYTES:
            self._blocks.append(torch.empty(max(_BLOCK_BYTES, size), dtype=torch.uint8))
            self._used = 0
        block = self._blocks[-1]
        block[self._used : self._used + size] = image.permute(1, 2, 0).reshape(-1)
        height, width = image.shape[-2:]
        self._where[index] = (len(self._blocks) - 1, self._used, height, width)
        self._used += size

    def __len__(self) -> int:
        return len(self._where)

    def load(self, index: int) -> Tensor:
        block, offset, height, width = self._where[index].tolist()
        if block < 0:
            raise UnreadableImage(self.unreadable[index])
        flat = self._blocks[block][offset : offset + height * width * 3]
        image: Tensor = flat.view(height, width, 3).permute(2, 0, 1)
        return image


def _try_decode(path: str, max_short_side: int | None) -> Tensor | str:
    try:
        return decode(path, max_short_side)
    except UnreadableImage as error:
        return str(error)


def _check_memory(needed: int) -> None:
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        with open("/proc/meminfo") as lines:  # counts reclaimable file caches too
            for line in lines:
                if line.startswith("MemAvailable:"):
                    free = int(line.split()[1]) * 1024
    except (OSError, ValueError, AttributeError):
        return  # not Linux: let the allocation decide
    if needed > 0.9 * free:
        raise MemoryError(
            f"the decoded images need about {needed / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB "
            "are free; cap their size (--cache-short-side) or do not cache"
        )

"""Batches of photos for training and validation, the same ones whatever the number of workers."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from .sources import ImageSource, UnreadableImage
from .transforms import Preprocessing, TrainTransform


def hash_seed(*parts: object) -> int:
    """A seed for a torch generator that differs wherever one of `parts` does."""
    # A string is hashed by SHA-512: the same on every platform and in every process.
    return random.Random("/".join(str(part) for part in parts)).getrandbits(63)


#: (epoch, index of the photo): everything that decides what one training sample looks like.
Key = tuple[int, int]


@dataclass
class Batch:
    """What one worker hands over.

    Attributes:
        images: uint8 (B, 3, S, S), channels-last.
        labels: int64 (B).
        unreadable: one line for each photo that could not be read.
    """

    images: Tensor
    labels: Tensor
    unreadable: list[str]

    def pin_memory(self) -> Batch:
        """Called by DataLoader(pin_memory=True)."""
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), self.unreadable)


class _Photos(Dataset[Batch]):
    """Assembles whole batches, so that a photo is written once, to its place in the batch."""

    def __init__(self, source: ImageSource, labels: Sequence[int], size: int) -> None:
        self._source = source
        self._labels = torch.tensor(labels, dtype=torch.int64)
        self._size = size

    def _assemble(
        self, indices: Sequence[int], transform: Callable[[int], Tensor], replace: bool
    ) -> Batch:
        memory = torch.empty(len(indices), self._size, self._size, 3, dtype=torch.uint8)
        images = memory.permute(0, 3, 1, 2)
        labels: list[int] = []
        unreadable: list[str] = []
        for position in range(len(indices)):
            index = indices[position]
            for _ in range(len(self._source)):
                try:
                    images[len(labels)] = transform(index)
                except UnreadableImage as error:
                    unreadable.append(str(error))
                    if not replace:
                        break
                    index = (index + 1) % len(self._source)
                else:
                    labels.append(index)
                    break
        count = len(labels)
        return Batch(images[:count], self._labels[labels], unreadable)


class TrainPhotos(_Photos):
    """Augmented photos. An unreadable one is replaced by the next, so that batches keep their size.

    Raises (when a batch is made):
        UnreadableImage: no photo at all is readable.
    """

    def __init__(
        self, source: ImageSource, labels: Sequence[int], transform: TrainTransform, seed: int
    ) -> None:
        super().__init__(source, labels, transform.augmentation.size)
        self._transform = transform
        self._seed = seed

    def __getitems__(self, keys: list[Key]) -> Batch:
        epoch = keys[0][0]

        def augmented(index: int) -> Tensor:
            return self._transform(self._source.load(index), f"{self._seed}/{epoch}/{index}")

        batch = self._assemble([index for _, index in keys], augmented, replace=True)
        if not len(batch.labels):
            raise UnreadableImage("no training image could be read")
        return batch

    def __getitem__(self, key: Key) -> Batch:
        return self.__getitems__([key])


class EvalPhotos(_Photos):
    """Photos after the evaluation transform. An unreadable one is left out of its batch."""

    def __init__(
        self, source: ImageSource, labels: Sequence[int], preprocessing: Preprocessing
    ) -> None:
        super().__init__(source, labels, preprocessing.crop_size)
        self._preprocessing = preprocessing

    def __getitems__(self, indices: list[int]) -> Batch:
        def cropped(index: int) -> Tensor:
            return self._preprocessing.crop(self._source.load(index))

        return self._assemble(indices, cropped, replace=False)

    def __getitem__(self, index: int) -> Batch:
        return self.__getitems__([index])


class ShuffledBatches(Sampler[list[Key]]):
    """Every photo once an epoch, in an order that depends on (seed, epoch) alone.

    The global batches are the same for any number of processes: process `rank` takes its equal
    share of each. The last, incomplete batch is dropped.

    Args:
        length: number of photos.
        batch: global batch size, a multiple of `world_size`, at most `length`.
        seed: of the order.
        rank, world_size: this process's share.

    Raises:
        ValueError: the batch does not divide among the processes or is larger than the set.
    """

    def __init__(
        self, length: int, batch: int, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        if batch < 1 or batch % world_size:
            raise ValueError(f"batch {batch} does not divide among {world_size} processes")
        if batch > length:
            raise ValueError(f"batch {batch} is larger than the {length} images")
        self._length = length
        self._batch = batch
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self.epoch = 0

    def __len__(self) -> int:
        return self._length // self._batch

    def __iter__(self) -> Iterator[list[Key]]:
        generator = torch.Generator().manual_seed(hash_seed(self._seed, self.epoch))
        order = torch.randperm(self._length, generator=generator).tolist()
        share = self._batch // self._world_size
        for begin in range(0, len(self) * self._batch, self._batch):
            first = begin + self._rank * share
            yield [(self.epoch, index) for index in order[first : first + share]]


class OrderedBatches(Sampler[list[int]]):
    """Every photo once, in order, dealt out to the processes one by one."""

    def __init__(self, length: int, batch: int, rank: int = 0, world_size: int = 1) -> None:
        self._indices = range(rank, length, world_size)
        self._batch = batch

    def __len__(self) -> int:
        return -(-len(self._indices) // self._batch)

    def __iter__(self) -> Iterator[list[int]]:
        for begin in range(0, len(self._indices), self._batch):
            yield list(self._indices[begin : begin + self._batch])


def _can_fork() -> bool:
    return "fork" in multiprocessing.get_all_start_methods()


def _as_is(batch: Any) -> Any:
    return batch


def make_loader(
    photos: _Photos,
    batches: Sampler[list[Key]] | Sampler[list[int]],
    workers: int,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """A loader of `Batch`es; `workers` 0 loads in the calling process."""
    return DataLoader(
        photos,
        batch_sampler=batches,
        collate_fn=_as_is,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        # DataLoader draws a seed for its workers when it starts them, which a resumed run does at
        # another epoch; drawn from the global stream, that would shift dropout and mixup.
        generator=torch.Generator(),
        # "fork" shares a cache of decoded photos; "spawn" would send it to every worker.
        multiprocessing_context="fork" if workers > 0 and _can_fork() else None,
    )

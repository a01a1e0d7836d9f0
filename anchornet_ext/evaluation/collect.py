"""All exits once for every image: an exit table from an image folder."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from anchornet_ext.data.loading import Batch, EvalPhotos, make_loader
from anchornet_ext.data.sources import FileSource
from anchornet_ext.training.distributed import World
from anchornet_ext.training.run_log import RunLog

from .exit_values import TEMPERATURES, Values, exit_values
from .listing import Listing
from .parts import FAILURES, Parts
from .systems import ExitSystem, VaryingCosts
from .units import plural

#: A part of this many images is lost at most when a run is killed; of fewer images there are at
#: least as many parts as this, to share them out.
MAX_PART = 4096
_FEWEST_PARTS = 16
_SMALLEST_PART = 64
#: The others are in failures.csv only.
_FAILURES_TOLD = 10


@dataclass(frozen=True)
class CollectOptions:
    """How to collect; the table does not depend on it, but for `part_size` and `grid`.

    Attributes:
        batch_size: images that go through the networks together.
        workers: loading processes; 0 loads in this one.
        part_size: images of a part; None chooses by the number of images.
        grid: whether to collect the temperature grid.
        resume: keep the parts that an earlier run of the same settings has left.
        overwrite: delete what an earlier run has left.

    Raises:
        ValueError: a value out of its range, or both `resume` and `overwrite`.
    """

    batch_size: int = 32
    workers: int = 0
    part_size: int | None = None
    grid: bool = True
    resume: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name, lowest in (("batch_size", 1), ("workers", 0), ("part_size", 1)):
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ValueError(f"{name} must be at least {lowest}, got {value}")
        if self.resume and self.overwrite:
            raise ValueError("resume and overwrite exclude each other")


def plan_parts(system: ExitSystem, listing: Listing, out: Path, options: CollectOptions) -> Parts:
    """The parts of this evaluation in `out`; nothing is written yet."""
    size = options.part_size
    if size is None:
        size = min(MAX_PART, max(_SMALLEST_PART, math.ceil(len(listing) / _FEWEST_PARTS)))
    identity = {"system": system.name, "model": system.checksum, "num_exits": system.num_exits}
    grid = TEMPERATURES if options.grid and system.temperature_scales else ()
    return Parts(out, listing, system.num_exits, size, identity, grid, system.costs_vary)


def compute_parts(
    system: ExitSystem,
    listing: Listing,
    parts: Parts,
    world: World,
    log: RunLog,
    options: CollectOptions,
) -> None:
    """Computes the parts that are missing, shared among the processes.

    An image that cannot be read, or for which the networks give no number, is left out of its part
    and named there. The first process returns when all parts are there, whoever wrote them; the
    others when they have written theirs.

    Args:
        system: on `world.device`.
        listing: the images.
        parts: of `plan_parts`, after `Parts.begin` by one process.
        world: this process's share.
        log: for progress and failures.
        options: see there.
    """
    if parts.finished():
        return
    mine = parts.missing()[world.rank :: world.size]
    world.barrier()  # nobody writes before everybody has seen what is missing
    _compute(system, listing, parts, mine, world, log, options)
    if world.is_main:
        _wait_for_all(parts, log)


def merge_table(
    system: ExitSystem,
    listing: Listing,
    parts: Parts,
    log: RunLog,
    milliseconds: NDArray[np.float64] | None = None,
) -> None:
    """Makes the exit table and the list of failures out of the parts, and removes those.

    Args:
        system, listing, parts, log: as for `compute_parts`.
        milliseconds: (T,) for the table, where they have been measured.

    Raises:
        ValueError: no image could be read, or a part is damaged.
    """
    more = {} if milliseconds is None else {"milliseconds": np.asarray(milliseconds, np.float64)}
    about = {
        "system": system.name,
        "checksum": system.checksum,
        "data": listing.folder.name,
        "class_names": list(listing.class_names),
        "preprocessing": system.preprocessing.to_dict(),
        **system.about,
    }
    cost = np.array(system.macs_per_exit(), np.float64)
    kept, failed = parts.merge(cost, about, **more)
    left_out = f"; {failed} could not be evaluated, see {FAILURES}" if failed else ""
    log.line(f"{plural(kept, 'image')} in the exit table{left_out}")


class _PartBatches(Sampler[list[int]]):
    """The batches of some parts, in order; a batch never holds images of two parts."""

    def __init__(self, parts: Parts, chosen: Sequence[int], batch: int) -> None:
        self._parts = parts
        self._chosen = chosen
        self._batch = batch

    def __len__(self) -> int:
        return sum(-(-len(self._parts.images(part)) // self._batch) for part in self._chosen)

    def of_part(self, part: int) -> Iterator[list[int]]:
        images = self._parts.images(part)
        for begin in range(0, len(images), self._batch):
            yield list(images[begin : begin + self._batch])

    def __iter__(self) -> Iterator[list[int]]:
        for part in self._chosen:
            yield from self.of_part(part)


def _compute(
    system: ExitSystem,
    listing: Listing,
    parts: Parts,
    mine: Sequence[int],
    world: World,
    log: RunLog,
    options: CollectOptions,
) -> None:
    if not mine:
        return
    # The "labels" are the images' own numbers: a batch says by them which images it holds.
    photos = EvalPhotos(FileSource(listing.full_paths()), range(len(listing)), system.preprocessing)
    batches = _PartBatches(parts, mine, options.batch_size)
    loader = make_loader(photos, batches, options.workers, pin_memory=world.device.type == "cuda")
    loaded = iter(loader)
    log.begin("evaluating images", sum(len(parts.images(part)) for part in mine))
    done = told = 0
    begun = time.monotonic()
    for part in mine:
        pieces: list[Values] = []
        failed: dict[int, str] = {}
        for wanted in batches.of_part(part):
            pieces.append(_values(system, next(loaded), wanted, listing, failed, world, parts))
            done += len(wanted)
            log.update(done, f"{done / (time.monotonic() - begun):.0f} images/s")
        for reason in list(failed.values())[: _FAILURES_TOLD - told]:
            log.line(f"left out: {reason}")
            told += 1
        parts.write(part, _joined(pieces), failed)
    log.end()


def _values(
    system: ExitSystem,
    batch: Batch,
    wanted: Sequence[int],
    listing: Listing,
    failed: dict[int, str],
    world: World,
    parts: Parts,
) -> Values:
    """The values of a batch; what is wrong with the images left out goes into `failed`."""
    index = batch.labels.numpy()
    read = set(index.tolist())
    unread = [i for i in wanted if i not in read]
    reasons = map(listing.without_folder, batch.unreadable)
    failed.update(zip(unread, reasons, strict=True))
    labels = torch.from_numpy(listing.labels[index].astype(np.int64)).to(world.device)
    costs = torch.zeros(0, system.num_exits)
    if len(index):
        photos = batch.images.to(world.device, non_blocking=True)
        images = system.preprocessing.normalise(photos)
        if parts.costs_vary:
            logits, costs = cast(VaryingCosts, system).logits_and_costs(images)
        else:
            logits = system.anytime_logits(images)  # (T, B, n)
    else:
        logits = torch.zeros(system.num_exits, 0, system.num_classes, device=world.device)
    values = exit_values(logits, labels, parts.temperatures)
    if parts.costs_vary:
        values["image_cost"] = costs.double().cpu().numpy()
    values["index"] = index
    # NaN anywhere in an image's logits makes its confidence NaN.
    finite = np.isfinite(values["confidence"]).all(axis=1)
    for i in index[~finite]:
        path = listing.path(int(i))
        failed[int(i)] = f"{path}: the networks give no number for it (NaN or infinite)"
    return {
        name: array[:, finite] if name.startswith("scaled") else array[finite]
        for name, array in values.items()
    }


def _joined(pieces: Sequence[Values]) -> Values:
    return {
        name: np.concatenate(
            [piece[name] for piece in pieces], axis=1 if name.startswith("scaled") else 0
        )
        for name in pieces[0]
    }


def _wait_for_all(parts: Parts, log: RunLog) -> None:
    """Until the other processes have written theirs; torchrun ends us if one of them fails.

    Not a barrier: those time out where one process has minutes more to do than another.
    """
    log.begin("waiting for the other processes", len(parts))
    while (there := sum(parts.exists(part) for part in range(len(parts)))) < len(parts):
        log.update(there)
        time.sleep(0.2)
    log.end()

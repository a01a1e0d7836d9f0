"""The parts of an evaluation: what is computed lies on disk, each part whole or not at all.

A part is the images [k * size, (k + 1) * size) of the listing, whoever computes it. So any number
of processes can share the parts, a run that was killed goes on with what is missing, and the table
that is merged from them is the same.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from anchornet_ext._files import write_whole
from anchornet_ext.policy.exit_table import encode_metadata
from anchornet_ext.policy.npz import Array, Pieces, read_npz, write_npz

from .exit_values import Values
from .listing import Listing

TABLE = "exits.npz"
FAILURES = "failures.csv"
_FOLDER = "parts"
_IDENTITY = "collection.json"


class Parts:
    """The parts of one evaluation in a report folder.

    Args:
        out: the report folder.
        listing: the images.
        num_exits: T.
        size: images of a part.
        identity: what all parts must agree on (model, settings), for JSON. The listing is added.
        temperatures: of the grid, or none.
        costs_vary: whether there is an "image_cost" (n, T) float64 among the values of a part.
    """

    def __init__(
        self,
        out: Path,
        listing: Listing,
        num_exits: int,
        size: int,
        identity: Mapping[str, Any],
        temperatures: tuple[float, ...] = (),
        costs_vary: bool = False,
    ) -> None:
        self._out = out
        self._folder = out / _FOLDER
        self._listing = listing
        self._num_exits = num_exits
        self._size = size
        self.temperatures = temperatures
        self.costs_vary = costs_vary
        self._identity = {
            **identity,
            "images": {"count": len(listing), "digest": listing.digest()},
            _SIZES: listing.sizes_digest(),
            "part_size": size,
            "temperatures": list(temperatures),
        }

    def __len__(self) -> int:
        return -(-len(self._listing) // self._size)

    def images(self, part: int) -> range:
        """The indices of a part's images."""
        return range(part * self._size, min((part + 1) * self._size, len(self._listing)))

    def begin(self, *, resume: bool = False, overwrite: bool = False) -> None:
        """Makes the folder ready; for one process to call before all write their parts.

        Raises:
            ValueError: the folder holds an evaluation already, and neither is said; or, to resume,
                it is one of another model, other images or settings.
        """
        path = self._out / _IDENTITY
        if overwrite:
            # In this order, a kill in between leaves nothing that looks like a finished evaluation.
            (self._out / TABLE).unlink(missing_ok=True)
            shutil.rmtree(self._folder, ignore_errors=True)
            path.unlink(missing_ok=True)
        if path.exists():
            if not resume:
                raise ValueError(
                    f"{str(self._out)!r} already holds an evaluation; use --resume to go on with "
                    "it, --overwrite to begin anew, or another --out"
                )
            self.require_same()
        elif (self._out / TABLE).exists():
            raise ValueError(
                f"{str(self._out)!r} holds an {TABLE} of unknown origin; use --overwrite to "
                "replace it, or another --out"
            )
        if not self.finished():
            self._folder.mkdir(parents=True, exist_ok=True)
            for part in range(len(self)):
                if self.exists(part) and not self._is_whole(part):
                    self._path(part).unlink()
        text = json.dumps(self._identity, indent=2, allow_nan=False) + "\n"
        write_whole(path, text.encode())

    def require_same(self) -> None:
        """Raises ValueError where the folder's parts belong to another evaluation."""
        path = self._out / _IDENTITY
        try:
            before = json.loads(path.read_bytes())
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged ({error}); use --overwrite to begin anew"
            ) from error
        here = json.loads(json.dumps(self._identity))
        if isinstance(before, dict) and _SIZES not in before:
            del here[_SIZES]  # begun before they were compared
        differing = [
            key
            for key in {**here, **(before if isinstance(before, dict) else {})}
            if not isinstance(before, dict) or before.get(key) != here.get(key)
        ]
        if differing:
            described = ", ".join(
                f"{key} ({_short(before.get(key))} there, {_short(here.get(key))} here)"
                if isinstance(before, dict)
                else key
                for key in differing
            )
            raise ValueError(
                f"{str(self._out)!r} was begun with other settings: {described}; use --overwrite "
                "to begin anew, or another --out"
            )

    def finished(self) -> bool:
        """Whether the table has been merged."""
        return (self._out / TABLE).exists()

    def missing(self) -> list[int]:
        """The parts that are still to be computed."""
        return [part for part in range(len(self)) if not self.exists(part)]

    def exists(self, part: int) -> bool:
        """Whether a part has been written, by whatever process."""
        return self._path(part).exists()

    def hold_images(self) -> bool:
        """Whether the parts that have been written hold any image that could be read."""
        return any(len(self._read(part, "index")) for part in range(len(self)))

    def write(self, part: int, values: Values, failed: Mapping[int, str]) -> None:
        """Writes a part.

        Args:
            part: which.
            values: see `exit_values`, and "index" (n,) int64, the images they are of, ascending.
            failed: index of an image that is left out -> why. With the others it makes up the part.
        """
        arrays: Values = {
            **values,
            "failed_index": np.array(sorted(failed), np.int64),
            "failed_reason": np.array(
                [failed[i].encode(errors="backslashreplace") for i in sorted(failed)], np.bytes_
            ),
        }
        for name in _GRID:
            if name in arrays:
                # A member for each temperature: merging reads one after the other.
                grid = arrays.pop(name)
                arrays.update({f"{name}.{g}": plane for g, plane in enumerate(grid)})
        write_npz(self._path(part), {name: Pieces.of(array) for name, array in arrays.items()})

    def merge(self, cost: Array, metadata: Mapping[str, Any], **more: Array) -> tuple[int, int]:
        """Joins all parts into the table and the list of failures, then removes them.

        Memory holds one array of one part at a time.

        Args:
            cost: (T,) float64, see `ExitTable`; where costs vary, the mean over the images instead.
            metadata: of the table; the number of failures is added.
            more: further arrays of the table, such as milliseconds.

        Returns:
            How many images are in the table, and how many were left out.

        Raises:
            ValueError: a part is missing or damaged, or no image at all could be read.
        """
        index = [self._read(part, "index") for part in range(len(self))]
        failures = dict(self._failures())
        write_whole(self._out / FAILURES, self._failure_list(failures).encode(errors=_SURROGATES))
        kept = sum(map(len, index))
        if kept == 0:
            first = next(iter(failures.values()))
            raise ValueError(f"none of the {len(failures)} images could be read: {first}")
        shape = (kept, self._num_exits)
        labels, paths = self._listing.labels, self._listing.paths

        def every(name: str) -> Iterator[Array]:
            return (self._read(part, name) for part in range(len(self)))

        def right() -> Iterator[Array]:
            for part, prediction in enumerate(every("prediction")):
                yield prediction == labels[index[part]][:, None]

        arrays = {
            "confidence": Pieces(shape, np.dtype(np.float32), every("confidence")),
            "correct": Pieces(shape, np.dtype(bool), right()),
            "prediction": Pieces(shape, np.dtype(np.int32), every("prediction")),
            "top5": Pieces(shape, np.dtype(bool), every("top5")),
            "label": Pieces((kept,), labels.dtype, (labels[i] for i in index)),
            "image_ids": Pieces((kept,), paths.dtype, (paths[i] for i in index)),
            "cost": Pieces.of(np.asarray(cost, np.float64)),
            **{name: Pieces.of(array) for name, array in more.items()},
        }
        if self.costs_vary:
            total = sum(piece.sum(axis=0) for piece in every("image_cost"))
            arrays["cost"] = Pieces.of(np.asarray(total / kept, np.float64))
            arrays["image_cost"] = Pieces(shape, np.dtype(np.float64), every("image_cost"))
        if self.temperatures:
            arrays["temperatures"] = Pieces.of(np.array(self.temperatures, np.float64))
            planes = range(len(self.temperatures))

            def every_plane(name: str) -> Iterator[Array]:
                return (piece for g in planes for piece in every(f"{name}.{g}"))

            for name in _GRID:
                grid_shape = (len(planes), *shape)
                arrays[name] = Pieces(grid_shape, np.dtype(np.float32), every_plane(name))
        about = encode_metadata({**metadata, "failures": len(failures)}, arrays)
        write_npz(self._out / TABLE, {"metadata": Pieces.of(about), **arrays})
        shutil.rmtree(self._folder)
        return kept, len(failures)

    def _path(self, part: int) -> Path:
        return self._folder / f"{part:06}.npz"

    def _is_whole(self, part: int) -> bool:
        """Whether it can be read and is of these images."""
        try:
            members = read_npz(self._path(part), {"index", "failed_index"}.__contains__)
            images = np.sort(np.concatenate([members["index"], members["failed_index"]]))
        except (ValueError, KeyError):
            return False
        return np.array_equal(images, np.array(self.images(part)))

    def _read(self, part: int, name: str) -> Array:
        try:
            return read_npz(self._path(part), name.__eq__)[name]
        except KeyError:
            raise ValueError(f"{self._path(part)} has no {name}; use --overwrite") from None

    def _failures(self) -> Iterator[tuple[int, str]]:
        for part in range(len(self)):
            index, reasons = self._read(part, "failed_index"), self._read(part, "failed_reason")
            for i, reason in zip(index, reasons, strict=True):
                yield int(i), bytes(reason).decode(errors="replace")

    def _failure_list(self, failures: Mapping[int, str]) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("image", "reason"))
        for i in sorted(failures):
            writer.writerow((self._listing.path(i), failures[i]))
        return text.getvalue()


def read_failures(out: Path) -> list[str]:
    """Why each image was left out of a finished evaluation; the reasons name the images."""
    with open(out / FAILURES, encoding="utf-8", errors=_SURROGATES, newline="") as file:
        return [row["reason"] for row in csv.DictReader(file)]


_SIZES = "file sizes of the images"
_GRID = ("scaled_confidence", "scaled_nll")
#: A file name of bytes that are no text goes into the list as these bytes.
_SURROGATES = "surrogateescape"


def _short(value: Any) -> str:
    text = str(value.get("digest", value) if isinstance(value, Mapping) else value)
    return text if len(text) <= 16 else f"{text[:13]}..."

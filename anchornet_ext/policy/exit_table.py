"""The exit table: what a system with early exits says about every image at every exit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from anchornet_ext._formats import require_version

from .exit_policy import ANSWERS, Answer
from .npz import Array, Pieces, read_npz, write_npz

FORMAT = "anchornet_ext exit table"
FORMAT_VERSION = 1

#: How close a stored confidence and the one of the temperature 1 must be: rounding of float32.
_SAME_CONFIDENCE = 1e-4


@dataclass(frozen=True, eq=False)
class ExitTable:
    """Confidence and correctness of N images at T exits, and what an exit costs.

    One format for every system: from it follow the anytime accuracy, the accuracy at a budget, and
    the thresholds (`policy.fitting`). A published table may hold no more than `confidence` and
    `correct`; what is missing is None.

    Attributes:
        confidence: (N, T) float32 in [0, 1], what is compared with the thresholds.
        correct: (N, T) bool, whether the answer at that exit is right.
        cost: (T,) float64, multiply-adds of an image that leaves at exit t; increasing.
        image_cost: (N, T) float64, multiply-adds of each image at each exit, for systems whose
            images cost differently at the same exit; `cost` is its mean over the images.
        prediction: (N, T) int32, the answer at each exit, an index of a class.
        label: (N,) int32, the right answer.
        top5: (N, T) bool, whether the label is among the five most probable classes.
        milliseconds: (T,) float64, measured time of an image that leaves at exit t; increasing.
        temperatures: (G,) float64, positive and increasing: the grid of the next two.
        scaled_confidence: (G, N, T) float32, the confidence with all logits divided by the
            temperature.
        scaled_nll: (G, N, T) float32, -log of the label's probability with that temperature.
        image_ids: (N,) bytes, the images' paths below the data folder (see `image_path`).
        metadata: whatever JSON can hold: system, model, data, class_names, versions, ...

    Raises:
        ValueError: an array of a wrong shape or dtype, without images or exits, with NaN or a value
            out of its range, or that contradicts another one. The message names the array.
    """

    confidence: NDArray[np.float32]
    correct: NDArray[np.bool_]
    cost: NDArray[np.float64] | None = None
    prediction: NDArray[np.int32] | None = None
    label: NDArray[np.int32] | None = None
    top5: NDArray[np.bool_] | None = None
    milliseconds: NDArray[np.float64] | None = None
    temperatures: NDArray[np.float64] | None = None
    scaled_confidence: NDArray[np.float32] | None = None
    scaled_nll: NDArray[np.float32] | None = None
    image_ids: NDArray[np.bytes_] | None = None
    image_cost: NDArray[np.float64] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        confidence = _array("confidence", self.confidence, "float32", 2)
        images, exits = confidence.shape
        if images == 0 or exits == 0:
            raise ValueError(f"confidence is {confidence.shape}: a table has images and exits")
        _within("confidence", confidence, 0.0, 1.0)
        self._keep("correct", "bool", (images, exits))
        self._keep("prediction", "int32", (images, exits))
        self._keep("label", "int32", (images,))
        self._keep("top5", "bool", (images, exits))
        for name in ("cost", "milliseconds"):
            self._keep_increasing(name, exits)
        self._check_image_cost(images, exits)
        self._check_answers()
        self._check_grid(images, exits)
        if self.image_ids is not None:
            ids = np.asarray(self.image_ids)
            if ids.dtype.kind != "S" or ids.shape != (images,):
                raise ValueError(
                    f"image_ids must be ({images},) of bytes, got {ids.shape} of {ids.dtype}"
                )
        if not isinstance(self.metadata, Mapping):
            raise ValueError(f"metadata must be a mapping, got {type(self.metadata).__name__}")

    # ---- what it says ----

    @property
    def num_images(self) -> int:
        """N."""
        return int(self.confidence.shape[0])

    @property
    def num_exits(self) -> int:
        """T."""
        return int(self.confidence.shape[1])

    @property
    def class_names(self) -> list[str] | None:
        """The names that `prediction` and `label` index, where the metadata has them."""
        names: list[str] | None = self.metadata.get("class_names")
        return names

    def image_path(self, index: int) -> str:
        """The path below the data folder of image `index`."""
        if self.image_ids is None:
            raise ValueError("this table does not say which images it is of")
        return os.fsdecode(bytes(self.image_ids[index]))

    def costs(self, unit: str = "macs") -> NDArray[np.float64]:
        """(T,) what an image costs that leaves at each exit, in "macs" or "milliseconds".

        Raises:
            ValueError: the table does not have it, or the unit is another word.
        """
        if unit == "macs":
            if self.cost is None:
                raise ValueError(
                    "this exit table has no costs, which are needed here: give the multiply-adds "
                    "of each exit, as ExitTable.load(path, cost=...) or table.with_cost(...)"
                )
            return self.cost
        if unit == "milliseconds":
            if self.milliseconds is None:
                raise ValueError("this exit table has no measured milliseconds")
            return self.milliseconds
        raise ValueError(f"costs are in 'macs' or 'milliseconds', not in {unit!r}")

    # ---- other tables of it ----

    def subset(self, index: ArrayLike | slice) -> ExitTable:
        """The images that `index` picks: indices, a mask (N,) or a slice (which copies nothing)."""
        chosen = index if isinstance(index, slice) else np.asarray(index)
        if isinstance(chosen, np.ndarray):
            if chosen.dtype == bool and chosen.shape != (self.num_images,):
                raise ValueError(f"a mask must be ({self.num_images},), got {chosen.shape}")
            if chosen.ndim != 1 or (chosen.dtype != bool and chosen.dtype.kind not in "iu"):
                raise ValueError(
                    f"an index must be one-dimensional integers or a mask, got {chosen.dtype} "
                    f"{chosen.shape}"
                )
        return self._mapped(lambda array, axis: array[(slice(None),) * axis + (chosen,)])

    def first_exits(self, num_exits: int) -> ExitTable:
        """The same system with only its first `num_exits` exits (no copy)."""
        if not 1 <= num_exits <= self.num_exits:
            raise ValueError(f"num_exits must be 1 to {self.num_exits}, got {num_exits}")
        changed: dict[str, Any] = {
            name: getattr(self, name)[..., :num_exits]
            for name in (*_PER_EXIT, "cost", "milliseconds")
            if getattr(self, name) is not None
        }
        return replace(self, **changed)

    def with_cost(self, cost: ArrayLike) -> ExitTable:
        """The same with these multiply-adds (T,) instead of the ones it has or lacks."""
        return replace(self, cost=np.asarray(cost, np.float64), image_cost=None)

    def with_answer(self, answer: Answer) -> ExitTable:
        """The same under another rule of which prediction an image leaves with.

        "last": that of its last exit, which is this table. "surest": at exit t that of the exit
        s <= t with the highest confidence, of equal ones the later; prediction, correct and top5
        follow, the confidence stays that of the exit. The temperature grid is dropped: which
        confidence is the highest depends on the temperatures, so choose those first.
        """
        if answer not in ANSWERS:
            raise ValueError(f"answer must be one of {', '.join(ANSWERS)}, got {answer!r}")
        if answer == "last":
            return self
        surest = np.zeros(self.confidence.shape, np.intp)  # (N, T), the exit whose answer counts
        best = self.confidence[:, 0]
        for t in range(1, self.num_exits):
            later = self.confidence[:, t] >= best
            surest[:, t] = np.where(later, t, surest[:, t - 1])
            best = np.where(later, self.confidence[:, t], best)
        changed: dict[str, Any] = {
            name: np.take_along_axis(getattr(self, name), surest, axis=1)
            for name in ("correct", "prediction", "top5")
            if getattr(self, name) is not None
        }
        return replace(self, **changed, **_NO_GRID)

    def with_temperatures(self, temperatures: ArrayLike) -> ExitTable:
        """The same with the logits of each exit divided by a temperature.

        Args:
            temperatures: (T,), each one of the grid `self.temperatures`.

        Returns:
            A table whose confidence is that of these temperatures; the grid is dropped.

        Raises:
            ValueError: the table has no grid, or a temperature is not on it.
        """
        if self.temperatures is None or self.scaled_confidence is None:
            raise ValueError(
                "this exit table has no temperature grid: it was collected without one, or other "
                "temperatures or another answer rule have been applied to it"
            )
        wanted = np.asarray(temperatures, np.float64)
        if wanted.shape != (self.num_exits,):
            raise ValueError(f"{self.num_exits} exits need as many temperatures, got {wanted}")
        confidence = np.empty_like(self.confidence)
        for t, value in enumerate(wanted):
            nearest = int(np.abs(self.temperatures - value).argmin())
            if not np.isclose(self.temperatures[nearest], value, rtol=1e-6, atol=0):
                raise ValueError(
                    f"the temperature {value} of exit {t + 1} is not on the table's grid: "
                    f"{self.temperatures.tolist()}"
                )
            confidence[:, t] = self.scaled_confidence[nearest, :, t]
        return replace(self, confidence=confidence, **_NO_GRID)

    @staticmethod
    def concatenate(tables: Sequence[ExitTable]) -> ExitTable:
        """The images of all `tables`, in their order, with the metadata of the first.

        Raises:
            ValueError: there are none, or they differ in exits, costs, temperatures, class names or
                in which arrays they have.
        """
        if not tables:
            raise ValueError("there are no tables to concatenate")
        first = tables[0]
        for table in tables[1:]:
            for name in _ARRAYS:
                if (getattr(first, name) is None) != (getattr(table, name) is None):
                    raise ValueError(f"some of the tables have {name} and some do not")
            for name in ("cost", "milliseconds", "temperatures"):
                one, other = (_or_empty(getattr(each, name)) for each in (first, table))
                if not np.array_equal(one, other):
                    raise ValueError(f"the tables differ in their {name}")
            if table.num_exits != first.num_exits:
                raise ValueError(
                    f"one table has {first.num_exits} exits, another {table.num_exits}"
                )
            if table.class_names != first.class_names:
                raise ValueError("the tables differ in their class names")
        joined: dict[str, Any] = {
            name: np.concatenate([getattr(table, name) for table in tables], axis=axis)
            for name, axis in _IMAGE_AXIS.items()
            if getattr(first, name) is not None
        }
        return replace(first, **joined)

    # ---- files ----

    def save(self, path: str | PathLike[str]) -> None:
        """Writes a .npz file, whole or not at all. Arrays that are None are left out."""
        arrays = {
            name: Pieces.of(getattr(self, name))
            for name in _ARRAYS
            if getattr(self, name) is not None
        }
        metadata = encode_metadata(self.metadata, arrays)
        write_npz(path, {"metadata": Pieces.of(metadata), **arrays})

    @classmethod
    def load(
        cls, path: str | PathLike[str], cost: ArrayLike | None = None, *, grid: bool = True
    ) -> ExitTable:
        """Reads what `save` wrote, or a table of `confidence` and `correct` alone.

        Args:
            path: the .npz file. Nothing in it is executed (no pickles).
            cost: (T,) multiply-adds of each exit, for a table that has none.
            grid: whether to read the temperature grid, which is most of a large table, if there is
                one.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is damaged, no exit table, or contradicts itself; it has costs of
                its own and `cost` is given; a newer version wrote it. The message names the file.
        """
        path = Path(path)
        skipped = () if grid else _GRID
        arrays = read_npz(path, lambda name: name not in skipped)
        try:
            missing = [name for name in ("confidence", "correct") if name not in arrays]
            if missing:
                raise ValueError(f"it has no array {' and no array '.join(missing)}")
            unknown = sorted(set(arrays) - {*_ARRAYS, "metadata"})
            if unknown:
                raise ValueError(f"it has unknown arrays: {', '.join(unknown)}")
            metadata: dict[str, Any] = {}
            if "metadata" in arrays:
                metadata = decode_metadata(arrays.pop("metadata"), arrays, skipped)
            if cost is not None:
                if "cost" in arrays:
                    raise ValueError(
                        f"it has costs of its own ({arrays['cost'].tolist()}); "
                        "use with_cost to replace them"
                    )
                arrays["cost"] = np.asarray(cost, np.float64)
            return cls(**arrays, metadata=metadata)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is not a valid exit table: {error}") from error

    # ---- checks ----

    def _keep(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        value = getattr(self, name)
        if value is None and name != "correct":
            return
        array = _array(name, value, dtype, len(shape))
        if array.shape != shape:
            raise ValueError(f"{name} must be {shape} to fit the confidences, got {array.shape}")

    def _keep_increasing(self, name: str, exits: int) -> None:
        if getattr(self, name) is None:
            return
        values = _array(name, getattr(self, name), "float64", 1)
        if values.shape != (exits,):
            raise ValueError(f"{name} must be ({exits},), one of each exit, got {values.shape}")
        if not np.isfinite(values).all() or values[0] <= 0 or (np.diff(values) <= 0).any():
            raise ValueError(
                f"{name} must be positive and increase from exit to exit, got {values.tolist()}"
            )

    def _check_image_cost(self, images: int, exits: int) -> None:
        if self.image_cost is None:
            return
        self._keep("image_cost", "float64", (images, exits))
        if self.cost is None:
            raise ValueError("there is image_cost, but no cost")
        smallest, largest = self.image_cost.min(), self.image_cost.max()
        if not (smallest > 0 and largest < np.inf):  # also NaN
            raise ValueError(f"image_cost must be positive, got {smallest:g} to {largest:g}")

    def _check_answers(self) -> None:
        names = self.class_names
        if names is not None and not (
            isinstance(names, list) and all(isinstance(name, str) for name in names)
        ):
            raise ValueError("class_names must be a list of strings")
        for name in ("prediction", "label"):
            array = getattr(self, name)
            if array is None:
                continue
            if array.min() < 0:
                raise ValueError(f"{name} has the class {array.min()}; classes count from 0")
            if names is not None and array.max() >= len(names):
                raise ValueError(f"{name} has the class {array.max()} of {len(names)}")
        for t in range(self.num_exits):  # by columns: no temporary as large as the table
            right = self.correct[:, t]
            if self.prediction is not None and self.label is not None:
                wrong = np.flatnonzero((self.prediction[:, t] == self.label) != right)
                if wrong.size:
                    n = int(wrong[0])
                    raise ValueError(
                        f"correct[{n}, {t}] is {bool(right[n])}, but the prediction is "
                        f"{self.prediction[n, t]} and the label {self.label[n]}"
                    )
            if self.top5 is not None and (right & ~self.top5[:, t]).any():
                n = int(np.flatnonzero(right & ~self.top5[:, t])[0])
                raise ValueError(f"correct[{n}, {t}] is True, but top5[{n}, {t}] is False")

    def _check_grid(self, images: int, exits: int) -> None:
        if self.temperatures is None:
            for name in ("scaled_confidence", "scaled_nll"):
                if getattr(self, name) is not None:
                    raise ValueError(f"there is {name}, but no temperatures")
            return
        grid = _array("temperatures", self.temperatures, "float64", 1)
        if not (
            grid.size and np.isfinite(grid).all() and grid[0] > 0 and (np.diff(grid) > 0).all()
        ):
            raise ValueError(f"temperatures must be positive and increasing, got {grid.tolist()}")
        for name in ("scaled_confidence", "scaled_nll"):
            if getattr(self, name) is None:
                raise ValueError(f"there are temperatures, but no {name}")
            self._keep(name, "float32", (grid.size, images, exits))
        assert self.scaled_confidence is not None
        assert self.scaled_nll is not None
        _within("scaled_confidence", self.scaled_confidence, 0.0, 1.0)
        # A label's probability can be 0 in float32: then the nll is infinite, which is true.
        _within("scaled_nll", self.scaled_nll, 0.0, np.inf)
        for g in np.flatnonzero(grid == 1.0):
            for t in range(exits):
                apart = np.abs(self.scaled_confidence[g, :, t] - self.confidence[:, t]).max()
                if apart > _SAME_CONFIDENCE:
                    raise ValueError(
                        f"at exit {t + 1} scaled_confidence of the temperature 1 differs from the "
                        f"confidence by up to {apart:.3g}"
                    )

    def _mapped(self, change: Callable[[Array, int], Array]) -> ExitTable:
        changed: dict[str, Any] = {
            name: change(getattr(self, name), axis)
            for name, axis in _IMAGE_AXIS.items()
            if getattr(self, name) is not None
        }
        return replace(self, **changed)


#: Where the images lie in each array that has them.
_IMAGE_AXIS = {
    "confidence": 0,
    "correct": 0,
    "prediction": 0,
    "label": 0,
    "top5": 0,
    "image_cost": 0,
    "scaled_confidence": 1,
    "scaled_nll": 1,
    "image_ids": 0,
}
#: Arrays whose last dimension is the exits.
_PER_EXIT = (
    *("confidence", "correct", "prediction", "top5", "image_cost"),
    *("scaled_confidence", "scaled_nll"),
)
_ARRAYS = (*_IMAGE_AXIS, "cost", "milliseconds", "temperatures")
_GRID = ("temperatures", "scaled_confidence", "scaled_nll")
_NO_GRID: dict[str, Any] = dict.fromkeys(_GRID)


def encode_metadata(metadata: Mapping[str, Any], arrays: Iterable[str]) -> NDArray[np.uint8]:
    """Metadata as they lie in the file, its first member: the bytes of a JSON text.

    They list the arrays: a damaged directory of a .zip file can hide members without any error.

    Raises:
        ValueError: they hold what JSON cannot.
    """
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "arrays": sorted(arrays),
        "metadata": dict(metadata),
    }
    try:
        text = json.dumps(content, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"metadata must hold what JSON can: {error}") from error
    return np.frombuffer(text.encode(), np.uint8)


def decode_metadata(
    stored: Array, arrays: Iterable[str], skipped: Collection[str] = ()
) -> dict[str, Any]:
    """The inverse of `encode_metadata`, for the arrays of a file but those that were skipped.

    Raises:
        ValueError: not the metadata of an exit table, or those of a newer version or of a file with
            other arrays.
    """
    if stored.dtype != np.uint8 or stored.ndim != 1:
        raise ValueError(f"metadata must be bytes, got {stored.dtype} {stored.shape}")
    try:
        content = json.loads(stored.tobytes())
    except (ValueError, RecursionError) as error:  # also UnicodeDecodeError
        raise ValueError(f"metadata is not JSON: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"its metadata are not those of an {FORMAT}")
    require_version(content, FORMAT_VERSION, "it")
    written = content.get("arrays")
    if not isinstance(written, list) or {*written} - {*skipped} != {*arrays}:
        raise ValueError(f"it has the arrays {sorted(arrays)}, but was written with {written}")
    metadata = content.get("metadata")
    if not isinstance(metadata, dict):
        raise ValueError(f"metadata must be a mapping, got {metadata!r:.40}")
    return metadata


def _array(name: str, value: Any, dtype: str, dimensions: int) -> Array:
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{name} must be a NumPy array, got {type(value).__name__}")
    if value.dtype != np.dtype(dtype) or value.ndim != dimensions:
        raise ValueError(
            f"{name} must be {dtype} of {dimensions} dimension{'s' if dimensions > 1 else ''}, "
            f"got {value.dtype} of shape {value.shape}"
        )
    return value


def _within(name: str, array: Array, low: float, high: float) -> None:
    smallest, largest = array.min(), array.max()  # NaN where there is one, and no temporary
    if np.isnan(smallest) or np.isnan(largest):
        raise ValueError(f"{name} has {int(np.isnan(array).sum())} NaN")
    if smallest < low or largest > high:
        bad = smallest if smallest < low else largest
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {bad:g}")


def _or_empty(array: Array | None) -> Array:
    return np.empty(0) if array is None else array

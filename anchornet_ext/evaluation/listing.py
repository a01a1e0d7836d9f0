"""Which photos are evaluated, and which of the model's classes each shows."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anchornet_ext.data.image_folder import class_folders, scan, sizes_digest


@dataclass(frozen=True, eq=False)
class Listing:
    """N labelled photos in a fixed order.

    Attributes:
        folder: that they lie in.
        paths: (N,) bytes, of each photo below the folder (`os.fsdecode` gives the text). Arrays and
            not lists: a million strings would be copied into every loading process.
        labels: (N,) int32, index of the model's class.
        class_names: the model's n classes.
    """

    folder: Path
    paths: NDArray[np.bytes_]
    labels: NDArray[np.int32]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> str:
        """The path of photo `index` below the folder."""
        return os.fsdecode(bytes(self.paths[index]))

    def without_folder(self, text: str) -> str:
        """`text` with the photos' paths below the folder: where it lies is nobody's business."""
        return text.replace(os.path.join(self.folder, ""), "")

    def full_paths(self) -> list[str]:
        """The photos' files."""
        return [os.path.join(self.folder, self.path(i)) for i in range(len(self))]

    def sizes_digest(self) -> str:
        """Of the sizes of the photos' files; see `image_folder.sizes_digest`."""
        return sizes_digest(self.full_paths())

    def digest(self) -> str:
        """Of the photos' names and labels, wherever the folder lies."""
        digest = hashlib.sha256(os.fsencode("\0".join(self.class_names)))
        for path, label in zip(self.paths, self.labels, strict=True):
            digest.update(b"\0%d/%b" % (label, path))
        return digest.hexdigest()


def folder_classes(folder: Path) -> list[str]:
    """The names of the class folders, sorted: what `train` calls the classes."""
    return [entry.name for entry in class_folders(folder)]


def list_images(folder: Path, class_names: Sequence[str], limit: int | None = None) -> Listing:
    """Lists the photos of FOLDER/CLASS/, the classes matched by name.

    Args:
        folder: holds a folder for each class, or for some of the classes.
        class_names: the model's classes, in the order of its logits.
        limit: take only so many photos, spread evenly over the list and so over the classes.

    Raises:
        ValueError: the folder is missing or has no photos, it has a class that the model does not,
            or one that the model has twice.
    """
    folder = Path(os.path.abspath(folder))
    names = folder_classes(folder)
    unknown = [name for name in names if name not in set(class_names)]
    if unknown:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        split = folder / "val"
        hint = f"; did you mean {str(split)!r}?" if split.is_dir() and "val" in unknown else ""
        raise ValueError(
            f"{str(folder)!r} has classes that the model does not have: {shown} (the model has "
            f"{len(class_names)}, {', '.join(class_names[:3])}, ...){hint}"
        )
    times = Counter(class_names)
    repeated = [name for name in names if times[name] > 1]
    if repeated:
        raise ValueError(
            f"the model has {times[repeated[0]]} classes named {repeated[0]!r}: the folder of that "
            "name could be either"
        )
    samples = scan(folder, class_names, allow_empty_classes=True)
    count = len(samples)
    chosen = range(count)
    if limit is not None and limit < count:
        chosen = [(2 * i + 1) * count // (2 * limit) for i in range(limit)]  # type: ignore[assignment]
    prefix = len(os.path.join(folder, ""))
    return Listing(
        folder,
        np.array([os.fsencode(samples.paths[i][prefix:]) for i in chosen]),
        np.array([samples.labels[i] for i in chosen], np.int32),
        tuple(class_names),
    )

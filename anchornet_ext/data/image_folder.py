"""Finding labelled photos on disk: FOLDER/train/CLASS/*, FOLDER/val/CLASS/*, or FOLDER/CLASS/*."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from .photos import PHOTO_SUFFIXES


@dataclass(frozen=True)
class Samples:
    """Labelled photos: `paths[i]` shows `class_names[labels[i]]`."""

    paths: tuple[str, ...]
    labels: tuple[int, ...]
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def class_folders(folder: Path) -> list[Path]:
    """The subfolders of `folder`, each a class, sorted by name.

    Raises:
        ValueError: `folder` is missing, not a folder, or has no subfolder.
    """
    if not folder.is_dir():
        reason = "is not a folder" if folder.exists() else "does not exist"
        raise ValueError(f"image folder {str(folder)!r} {reason}")
    found = [entry for entry in _visible(folder) if entry.is_dir()]
    if not found:
        raise ValueError(f"image folder {str(folder)!r} has no class folders")
    return found


def photos_below(folder: Path) -> list[Path]:
    """The photos in `folder` and in the folders below it, sorted."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in PHOTO_SUFFIXES
        and not path.name.startswith(".")
        and path.is_file()
    )


def scan(
    folder: str | PathLike[str],
    class_names: Sequence[str] | None = None,
    *,
    allow_empty_classes: bool = False,
) -> Samples:
    """Lists the photos of FOLDER/CLASS/.

    Args:
        folder: holds one folder for each class.
        class_names: the order of the classes where it is already decided (a validation folder takes
            that of the training folder); None: the folders' names, sorted.
        allow_empty_classes: whether a class without photos is fine.

    Raises:
        ValueError: the folder is missing, has no classes, no photos, a class without photos, or a
            class that is not in `class_names`.
    """
    folder = Path(folder)
    folders = class_folders(folder)
    if class_names is None:
        class_names = [entry.name for entry in folders]
    index = {name: i for i, name in enumerate(class_names)}
    unknown = [entry.name for entry in folders if entry.name not in index]
    if unknown:
        raise ValueError(
            f"{str(folder)!r} has classes that the training images do not have: "
            f"{', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}"
        )
    paths: list[str] = []
    labels: list[int] = []
    for entry in folders:
        found = photos_below(entry)
        if not found and not allow_empty_classes:
            raise ValueError(f"class folder {str(entry)!r} has no images")
        paths.extend(str(path) for path in found)
        labels.extend([index[entry.name]] * len(found))
    if not paths:
        raise ValueError(f"image folder {str(folder)!r} has no images")
    return Samples(tuple(paths), tuple(labels), tuple(class_names))


def sizes_digest(paths: Iterable[str]) -> str:
    """Of the sizes of files in bytes, in their order: the same wherever their folder lies.

    To read all photos takes as long as an epoch, and one that was changed hardly keeps its size.
    """
    digest = hashlib.sha256()
    for path in paths:
        try:
            size = os.stat(path).st_size
        except OSError:  # gone: reading it says so, and need not end the run
            size = -1
        digest.update(b"%d " % size)
    return digest.hexdigest()[:16]


def split(samples: Samples, fraction: float, seed: int) -> tuple[Samples, Samples]:
    """Moves `fraction` of each class's photos (at least one) from training to validation.

    The split depends on the seed and on the photos' names below the class, not on where they lie.

    Raises:
        ValueError: the fraction is not within (0, 1), or a class has fewer than two photos.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"the validation fraction must lie between 0 and 1, not {fraction}")
    by_class: dict[int, list[str]] = {}
    for path, label in zip(samples.paths, samples.labels, strict=True):
        by_class.setdefault(label, []).append(path)
    kept: list[tuple[str, int]] = []
    moved: list[tuple[str, int]] = []
    for label in sorted(by_class):
        name, paths = samples.class_names[label], sorted(by_class[label])
        if len(paths) < 2:
            raise ValueError(
                f"class {name!r} has {len(paths)} image: at least 2 are needed to split off some "
                "for validation"
            )
        random.Random(f"{seed}/{name}").shuffle(paths)
        count = min(len(paths) - 1, max(1, round(fraction * len(paths))))
        moved.extend((path, label) for path in sorted(paths[:count]))
        kept.extend((path, label) for path in sorted(paths[count:]))

    def build(pairs: list[tuple[str, int]]) -> Samples:
        paths, labels = zip(*pairs, strict=True)
        return Samples(paths, labels, samples.class_names)

    return build(kept), build(moved)


def class_roots(folder: Path) -> list[Path]:
    """Where the folders of classes are: train/ and val/ in `folder`, train/ alone, or `folder`."""
    train, val = folder / "train", folder / "val"
    if train.is_dir() and val.is_dir():
        return [train, val]
    return [train if train.is_dir() else folder]


def find_training_images(
    folder: str | PathLike[str], val_fraction: float | None = None, seed: int = 0
) -> tuple[Samples, Samples]:
    """The training and validation photos of `folder`.

    Args:
        folder: has train/CLASS/ and val/CLASS/, or is a folder of classes (with `val_fraction`).
        val_fraction: share of each class that becomes validation; only for a folder of classes.
        seed: of that split.

    Raises:
        ValueError: the folder is laid out in neither way, `val_fraction` is missing or given where
            there is a val folder, or what `scan` and `split` refuse.
    """
    folder = Path(folder)
    class_folders(folder)  # says that the folder is missing rather than that train/ is
    train, *val = class_roots(folder)
    if val:
        if val_fraction is not None:
            raise ValueError(
                f"{str(folder)!r} has a val folder: a validation fraction ({val_fraction}) would "
                "be ignored"
            )
        samples = scan(train)
        return samples, scan(val[0], samples.class_names, allow_empty_classes=True)
    if val_fraction is None:
        raise ValueError(
            f"{str(folder)!r} has no train and val folders; give a validation fraction "
            "(--val-fraction) to split a folder of classes"
        )
    return split(scan(train), val_fraction, seed)

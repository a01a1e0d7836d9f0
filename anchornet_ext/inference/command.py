"""`anchornet predict`: classify photos, looking only as far as needed."""

from __future__ import annotations

import argparse
import glob
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from anchornet_ext._arguments import nonempty_path, positive, threads
from anchornet_ext._files import in_words, require_folder, write_whole
from anchornet_ext._machine import pick_device
from anchornet_ext.data.crop_geometry import CropGeometry
from anchornet_ext.data.photos import PHOTO_SUFFIXES, read_photo
from anchornet_ext.data.transforms import to_uint8_tensor
from anchornet_ext.policy.exit_policy import ExitPolicy

from .overlay import draw_overlay
from .prediction import Prediction, explain, prediction_of
from .report import JsonReport, Report, TableReport
from .two_stage import TwoStageClassifier

DEFAULT_MODEL = "caltech101"
DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
#: Photos are kept no larger than this until their overlay is drawn, which shows less.
OVERLAY_PHOTO_LIMIT = (1200, 1200)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `anchornet predict`."""
    parser.add_argument(
        "photos",
        nargs="+",
        metavar="PHOTO",
        help="photos, folders (searched recursively for photos) or glob patterns ('**' too)",
    )
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="FOLDER|NAME",
        help="a saved model's folder or a bundled model (default: %(default)s)",
    )
    exits = parser.add_mutually_exclusive_group()
    exits.add_argument(
        "--thresholds",
        type=_thresholds,
        metavar="A,B,...",
        help="confidence above which a photo leaves after input 1, 2, ...; one number holds for "
        "all inputs; --thresholds=-1,... where the first is negative (default: the model's own)",
    )
    parser.add_argument(
        "--policy",
        type=nonempty_path,
        metavar="FILE",
        help="what `anchornet calibrate` wrote: thresholds, temperatures and whose answer counts "
        "(default: the model's own; with --exit its thresholds do not matter)",
    )
    exits.add_argument(
        "--exit",
        type=positive,
        metavar="N",
        help="let every photo use exactly N inputs (1 is the glance alone)",
    )
    parser.add_argument(
        "--top", type=positive, default=1, metavar="K", help="show the K most probable classes"
    )
    parser.add_argument(
        "--batch",
        type=positive,
        default=32,
        metavar="N",
        help="photos classified together (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=positive,
        default=2,
        metavar="N",
        help="threads that read photos (default: %(default)s)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object a line instead of a table"
    )
    parser.add_argument(
        "--overlay",
        type=nonempty_path,
        metavar="FOLDER",
        help="write a picture for each photo there: patches, activation map, confidences",
    )
    parser.add_argument(
        "--no-extra-map",
        action="store_true",
        help="in overlays of photos that left at the glance, do not run AnchorNet for the picture",
    )
    parser.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)"
    )
    parser.add_argument(
        "--threads", type=threads, metavar="N", help="CPU threads (default: torch's)"
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="what the glance and the patches are computed in; the others are faster where the "
        "processor knows them, and a photo close to a threshold may leave at another exit "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the networks by torch.compile: the first photos wait for up to minutes, so "
        "this is for many thousands",
    )


def run(args: argparse.Namespace) -> int:
    """Classifies the photos; 0 if all of them could be, 1 if some could not.

    Raises:
        ValueError: no photo was found, or the arguments do not fit the model.
        FileNotFoundError: there is no such model.
    """
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.policy is not None and args.thresholds is not None:
        raise ValueError("give --thresholds or --policy, not both: a policy has its own")
    policy = None if args.policy is None else ExitPolicy.load(args.policy)
    paths, problems = find_photos(args.photos, leave_out=args.overlay)
    for problem in problems:
        _complain(problem)
    if not paths:
        raise ValueError("no photo to classify")
    if args.overlay is not None:
        require_folder(args.overlay, "--overlay")
    device = pick_device(args.device)
    model = TwoStageClassifier.from_pretrained(args.model, fold=False, device=device)
    model = model.tuned(compile=args.compile, dtype=DTYPES[args.dtype])
    thresholds = _for_model(args.thresholds, model)
    if policy is not None and policy.num_exits != model.num_exits:
        raise ValueError(
            f"--policy {args.policy} is for {policy.num_exits} exits, this model has "
            f"{model.num_exits}"
        )
    if args.exit is not None and args.exit > model.num_exits:
        raise ValueError(f"--exit {args.exit}: this model has {model.num_exits} exits")
    if args.overlay is not None:
        args.overlay.mkdir(parents=True, exist_ok=True)

    report: Report = JsonReport() if args.json else TableReport(paths, model)
    overlays = OverlayNames(args.overlay) if args.overlay is not None else None
    failures = len(problems)
    results = model.stream(
        paths,
        load=lambda path: _crop_and_photo(path, model, keep_picture=overlays is not None),
        workers=args.workers,
        thresholds=thresholds,
        exit_at=args.exit,
        policy=policy,
        **_sizes(args.batch, pictures=overlays is not None),
    )
    with closing(results):
        for result in results:
            if result.found is None:
                failures += 1
                assert result.error is not None
                _complain(in_words(result.error))
                continue
            photo: Photo = result.key
            prediction = prediction_of(
                model,
                photo.crop,
                result.found,
                top=args.top,
                extra_map=overlays is not None and not args.no_extra_map,
            )
            written = None
            if overlays is not None:
                written = overlays.unique(photo.path)
                _write_overlay(written, photo, prediction, model)
            report.add(str(photo.path), photo.geometry, prediction, written)
    report.finish(failures)
    return 1 if failures else 0


def find_photos(
    patterns: Sequence[str], leave_out: Path | None = None
) -> tuple[list[Path], list[str]]:
    """The files that the arguments name, each once and in order, and what is wrong with the rest.

    A file is taken whatever its name ends with; in folders only the endings of photos are. Folders
    are searched recursively, without the folder `leave_out`, so that the pictures of an earlier run
    are not taken for photos.
    """
    found: dict[Path, None] = {}  # a set that keeps its order
    problems: list[str] = []
    skipped = None if leave_out is None else leave_out.resolve()
    for pattern in patterns:
        # A name with brackets that exists is that name, not a pattern.
        matches = [pattern] if os.path.lexists(pattern) else sorted(_glob(pattern))
        if not matches:
            problems.append(
                f"{pattern}: nothing matches"
                if glob.has_magic(pattern)
                else f"{pattern}: there is no such file or folder"
            )
        for match in map(Path, matches):
            files = [match]
            if match.is_dir():
                files = _photos_below(match, skipped)
                if not files:
                    problems.append(f"{match}: there are no photos in this folder")
            found.update(dict.fromkeys(files))
    return list(found), problems


@dataclass(frozen=True)
class Photo:
    """A photo that could be read, without its many pixels.

    Attributes:
        path: its file.
        geometry: where the network's crop lies in it.
        crop: the network's crop, uint8 (3, H, W).
        picture: the photo, small enough for an overlay; None where none is drawn.
    """

    path: Path
    geometry: CropGeometry
    crop: Tensor
    picture: Image.Image | None


def load_photo(path: Path, model: TwoStageClassifier, keep_picture: bool = False) -> Photo:
    """Reads a photo and cuts out what the network sees.

    Raises:
        ValueError, OSError: what `data.photos.read_photo` raises, or the photo is far too
            elongated. The message names the file.
    """
    image = read_photo(path)
    try:
        crop = model.preprocessing.crop(to_uint8_tensor(image)).contiguous()
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    geometry = model.preprocessing.geometry(image.height, image.width)
    if keep_picture:
        image.thumbnail(OVERLAY_PHOTO_LIMIT, reducing_gap=3.0)
    return Photo(path, geometry, crop, image if keep_picture else None)


def _crop_and_photo(
    path: Path, model: TwoStageClassifier, keep_picture: bool
) -> tuple[Tensor, Photo]:
    try:
        photo = load_photo(path, model, keep_picture)
    except (ValueError, OSError):
        raise
    except Exception as error:  # of any other, nobody could tell which photo it was
        raise ValueError(f"{path}: {error!r}") from error
    return photo.crop, photo


def _sizes(batch: int, pictures: bool) -> dict[str, int]:
    """How many photos are classified, and kept, together."""
    if not pictures:
        return {"batch": batch, "patience": 8 * batch}
    # Whole pictures need memory: as many as a batch has. Drawing takes longer than all else.
    part = max(1, batch // 4)
    return {"batch": part, "slots": part, "patience": part}


class OverlayNames:
    """Names for overlay pictures: of the photo's name, and each only once in a run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._taken: set[str] = set()

    def unique(self, photo: Path) -> Path:
        """A path for the overlay of `photo`: dog.jpg gives dog.overlay.png, a second dog.png gives
        dog.2.overlay.png. The ending keeps photos in the same folder from being overwritten."""
        name, number = photo.stem, 1
        # Two names that differ in their capitals only are one file on some systems.
        while name.casefold() in self._taken:
            number += 1
            name = f"{photo.stem}.{number}"
        self._taken.add(name.casefold())
        return self._folder / f"{name}.overlay.png"


def _write_overlay(
    path: Path, photo: Photo, prediction: Prediction, model: TwoStageClassifier
) -> None:
    assert photo.picture is not None
    explanation = explain(photo.path.name, photo.picture, photo.geometry, prediction, model)
    picture = draw_overlay(explanation)
    buffer = BytesIO()
    picture.save(buffer, format="PNG")
    write_whole(path, buffer.getvalue())


def _glob(pattern: str) -> list[str]:
    """What matches, where "**" enters no link: `glob`'s own goes round a link to a folder above."""
    pattern = os.path.expanduser(pattern)
    parts = pattern.split(os.sep)
    if "**" not in parts:
        return glob.glob(pattern)
    place = parts.index("**")
    above, below = os.sep.join(parts[:place]), os.sep.join(parts[place + 1 :]) or "*"
    if place == 0:
        tops = [os.curdir]
    else:
        tops = glob.glob(above) if above else [os.sep]
    found: list[str] = []
    for top in tops:
        for folder, folders, _ in os.walk(top):
            folders[:] = [name for name in folders if not name.startswith(".")]  # as `glob` does
            found += _glob(os.path.join(glob.escape(folder), below))
    names = {os.path.normpath(name) if place == 0 else name for name in found}
    return sorted(names)


def _photos_below(folder: Path, skipped: Path | None) -> list[Path]:
    photos: list[Path] = []
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(
            name for name in folders if skipped is None or Path(parent, name).resolve() != skipped
        )
        photos += (
            Path(parent, name)
            for name in sorted(files)
            if Path(name).suffix.lower() in PHOTO_SUFFIXES and not name.endswith(".overlay.png")
        )
    return photos


def _for_model(
    thresholds: tuple[float, ...] | None, model: TwoStageClassifier
) -> tuple[float, ...] | None:
    if thresholds is None:
        return None
    if len(thresholds) == 1:
        return thresholds * (model.num_exits - 1)
    return model.checked_thresholds(thresholds)


def _thresholds(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(word) for word in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers") from None
    if any(value != value for value in values):
        raise argparse.ArgumentTypeError(f"{text!r} has a threshold that is not a number")
    return values


def _complain(message: str) -> None:
    print(f"anchornet predict: {message}", file=sys.stderr)

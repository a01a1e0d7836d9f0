"""`anchornet evaluate`: everything the paper measures, on one's own photos, with one command."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

from anchornet_ext.data.transforms import Preprocessing
from anchornet_ext.policy.exit_table import ExitTable
from anchornet_ext.training.distributed import World, join_world
from anchornet_ext.training.run_log import RunLog

from .collect import CollectOptions, collect, plan_parts
from .listing import Listing, folder_classes, list_images
from .parts import FAILURES, TABLE
from .summary import write_summary
from .systems import ExitSystem, PlainNetwork, TwoStageSystem


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `anchornet evaluate`."""
    what = parser.add_argument_group("what is evaluated").add_mutually_exclusive_group(
        required=True
    )
    what.add_argument(
        "--model", metavar="FOLDER|NAME", help="a saved model's folder or a bundled model"
    )
    what.add_argument(
        "--backbone",
        metavar="NAME",
        help="instead of a model: a plain network that sees the whole image once, for comparison; "
        "a torchvision classification model, or timm/NAME",
    )
    plain = parser.add_argument_group("with --backbone")
    weights = plain.add_mutually_exclusive_group()
    weights.add_argument(
        "--weights", type=Path, metavar="FILE", help="its weights, a safetensors file"
    )
    weights.add_argument("--pretrained", action="store_true", help="its published ImageNet weights")
    plain.add_argument(
        "--image-size", type=_positive, metavar="PIXELS", help="side of the image it sees (224)"
    )
    plain.add_argument(
        "--resize-size",
        type=_positive,
        metavar="PIXELS",
        help="short side of the photo, out of whose middle the image is cut (8/7 of --image-size)",
    )

    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="photos in a folder for each class, FOLDER/CLASS/*; the classes are matched with the "
        "model's by name, and need not be all of them",
    )
    data.add_argument(
        "--class-names",
        type=Path,
        metavar="FILE",
        help="names of the classes in the order of the logits, one a line, for networks that do "
        "not know them (default: the class folders' names, sorted)",
    )
    data.add_argument(
        "--limit", type=_positive, metavar="N", help="only N photos, spread over the classes"
    )

    run = parser.add_argument_group("run")
    run.add_argument(
        "--out", type=Path, required=True, metavar="REPORT", help="folder of the results"
    )
    again = run.add_mutually_exclusive_group()
    again.add_argument(
        "--resume",
        action="store_true",
        help="keep what is in REPORT of the same model, data and settings, and do the rest",
    )
    again.add_argument(
        "--overwrite", action="store_true", help="delete the evaluation that is in REPORT"
    )
    run.add_argument(
        "--batch-size", type=_positive, default=32, metavar="N", help="photos at a time (32)"
    )
    run.add_argument(
        "--chunk-size",
        type=_positive,
        metavar="N",
        help="photos of a part; parts are what is resumed and what processes share "
        "(default: by the number of photos, at most 4096)",
    )
    run.add_argument(
        "--workers", type=_count, metavar="N", help="loading processes (default: cores, at most 8)"
    )
    run.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)"
    )
    run.add_argument("--threads", type=_positive, metavar="N", help="CPU threads (torch's)")
    run.add_argument(
        "--no-temperatures",
        action="store_true",
        help="leave out the temperature grid, nine tenths of the table; `anchornet calibrate "
        "--temperatures` needs it",
    )
    run.add_argument(
        "--log-interval",
        type=_seconds,
        default=5.0,
        metavar="S",
        help="seconds between progress lines where there is no terminal (5)",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluates, and writes the results into REPORT; 0 also where photos had to be left out.

    Raises:
        ValueError, OSError, ImportError: an argument is wrong, or does not fit the data or REPORT.
    """
    options = CollectOptions(
        batch_size=args.batch_size,
        workers=min(8, _usable_cores()) if args.workers is None else args.workers,
        part_size=args.chunk_size,
        grid=not args.no_temperatures,
        resume=args.resume,
        overwrite=args.overwrite,
    )
    _check(args)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    with join_world(args.device) as world:
        system, listing = _open(args, world)
        log = RunLog(args.out, enabled=world.is_main, interval=args.log_interval)
        try:
            _collect(args, system, listing, world, log, options)
            if world.is_main:
                _report(args, log)
        except Exception as error:
            log.line(f"stopped: {error}")
            raise
        finally:
            log.close()
    return 0


def _check(args: argparse.Namespace) -> None:
    """What can be told without reading anything."""
    if args.backbone is None:
        given = {
            "--weights": args.weights,
            "--pretrained": args.pretrained or None,
            "--image-size": args.image_size,
            "--resize-size": args.resize_size,
        }
        for flag, value in given.items():
            if value is not None:
                raise ValueError(f"{flag} goes with --backbone: a model knows its own")
    elif args.weights is None and not args.pretrained:
        raise ValueError("--backbone needs --weights FILE or --pretrained")
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out {str(args.out)!r} is not a folder")


def _open(args: argparse.Namespace, world: World) -> tuple[ExitSystem, Listing]:
    if args.backbone is None:
        system: ExitSystem = TwoStageSystem.load(args.model, world.device)
        names = system.class_names
        if names is not None and args.class_names is not None:
            raise ValueError("--class-names: the model has names for its classes")
        if names is None:
            names = _class_names(args)
        if len(names) != system.num_classes:
            raise ValueError(
                f"the model has {system.num_classes} classes without names, and "
                f"{args.class_names or args.data} has {len(names)}: give --class-names FILE"
            )
        return system, list_images(args.data, names, args.limit)
    names = _class_names(args)
    listing = list_images(args.data, names, args.limit)
    side = args.image_size or 224
    preprocessing = Preprocessing(args.resize_size or round(side * 8 / 7), side)
    system = PlainNetwork.load(
        args.backbone,
        names,
        preprocessing,
        weights=args.weights,
        pretrained=args.pretrained,
        device=world.device,
    )
    return system, listing


def _class_names(args: argparse.Namespace) -> list[str]:
    """Those of --class-names, or of the folder."""
    if args.class_names is None:
        return folder_classes(args.data)
    try:
        names = [line.strip() for line in args.class_names.read_text("utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"--class-names {str(args.class_names)!r} is no text: {error}") from error
    if not names or not all(names):
        raise ValueError(f"--class-names {str(args.class_names)!r} must have a name on every line")
    return names


def _collect(
    args: argparse.Namespace,
    system: ExitSystem,
    listing: Listing,
    world: World,
    log: RunLog,
    options: CollectOptions,
) -> None:
    parts = plan_parts(system, listing, args.out, options)
    if world.is_main:
        args.out.mkdir(parents=True, exist_ok=True)
        parts.begin(resume=options.resume, overwrite=options.overwrite)
    world.barrier()  # nobody looks at the parts before they are made ready
    parts.require_same()
    missing = 0 if parts.finished() else len(parts.missing())
    log.line(
        f"{system.name}, {system.num_exits} exit{'s' if system.num_exits > 1 else ''}; "
        f"{len(listing)} photos of {listing.folder}; {missing} of {len(parts)} parts to do"
    )
    collect(system, listing, parts, world, log, options)


def _report(args: argparse.Namespace, log: RunLog) -> None:
    table = ExitTable.load(args.out / TABLE, grid=False)
    write_summary(args.out, table, {})
    if table.metadata["failures"]:
        log.line(f"{table.metadata['failures']} photos left out, see {args.out / FAILURES}")
    for exit_number, right in enumerate(table.correct.mean(axis=0), start=1):
        cost = table.costs()[exit_number - 1]
        log.line(f"exit {exit_number}: top-1 {100 * right:.2f} % at {cost / 1e6:.1f} MMACs")
    log.line(f"written to {args.out}")


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _positive(text: str) -> int:
    return _integer(text, 1)


def _count(text: str) -> int:
    return _integer(text, 0)


def _integer(text: str, lowest: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = lowest - 1
    if value < lowest:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from {lowest} on")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value

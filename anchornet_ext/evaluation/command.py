"""`anchornet evaluate`: everything the paper measures, on one's own photos, with one command."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from anchornet_ext._arguments import (
    argument,
    count,
    nonempty_path,
    positive,
    seconds,
    threads,
    usable_cores,
)
from anchornet_ext._files import require_folder
from anchornet_ext.data.transforms import Preprocessing
from anchornet_ext.policy import quantities
from anchornet_ext.policy.exit_policy import ExitPolicy
from anchornet_ext.policy.exit_table import ExitTable
from anchornet_ext.training.distributed import World, join_world
from anchornet_ext.training.run_log import RunLog

from .assemble import OWN_POLICY, assemble, gallery_of, load_plain
from .collect import CollectOptions, compute_parts, merge_table, plan_parts
from .latency import LatencyReport, PassTimes, measure_passes
from .listing import Listing, folder_classes, list_images
from .operating import require_fits
from .parts import TABLE, read_failures
from .plain_network import PlainNetwork
from .report import PAGE, write_report
from .report_data import ReportData
from .summary import SUMMARY, said_at_the_end, write_summary
from .systems import ExitSystem, TwoStageSystem
from .theme import require_matplotlib
from .wall_clock import exit_milliseconds, rebuild_plain, time_runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `anchornet evaluate`."""
    what = parser.add_argument_group("what is evaluated").add_mutually_exclusive_group(
        required=True
    )
    what.add_argument(
        "--model",
        metavar="RUN|FOLDER|NAME",
        help="a finished run of `anchornet train`, a saved model's folder, or a bundled model",
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
        "--weights", type=nonempty_path, metavar="FILE", help="its weights, a safetensors file"
    )
    weights.add_argument("--pretrained", action="store_true", help="its published ImageNet weights")
    plain.add_argument(
        "--image-size", type=positive, metavar="PIXELS", help="side of the image it sees (224)"
    )
    plain.add_argument(
        "--resize-size",
        type=positive,
        metavar="PIXELS",
        help="short side of the photo, out of whose middle the image is cut (8/7 of --image-size)",
    )

    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        type=nonempty_path,
        required=True,
        metavar="FOLDER",
        help="photos in a folder for each class, FOLDER/CLASS/*; the classes are matched with the "
        "model's by name, and need not be all of them",
    )
    data.add_argument(
        "--class-names",
        type=nonempty_path,
        metavar="FILE",
        help="names of the classes in the order of the logits, one a line, for networks that do "
        "not know them (default: the class folders' names, sorted)",
    )
    data.add_argument(
        "--limit", type=positive, metavar="N", help="only N photos, spread over the classes"
    )

    report = parser.add_argument_group("report")
    report.add_argument(
        "--operating-points",
        type=argument(_budgets),
        metavar="A,B,...",
        help="mean multiply-adds to fit thresholds for, 150M or 1.2G each (default: three between "
        "the first and the last exit)",
    )
    report.add_argument(
        "--policy",
        type=nonempty_path,
        action="append",
        default=[],
        metavar="FILE",
        help="measure this policy of `anchornet calibrate` as well; can be given again",
    )
    report.add_argument(
        "--plain",
        type=nonempty_path,
        action="append",
        default=[],
        metavar="TABLE|REPORT",
        help="a network to compare with: its exit table, or the folder of its report, as "
        "--backbone writes it; can be given again, and the first is timed",
    )
    report.add_argument(
        "--no-report",
        action="store_true",
        help="write the tables and no page with figures, for which matplotlib is needed",
    )
    report.add_argument(
        "--no-latency", action="store_true", help="do not measure times on this machine"
    )
    report.add_argument(
        "--latency-images",
        type=positive,
        metavar="N",
        help="photos to time real early exit on (default: what takes about a minute and a half, "
        "at most 256)",
    )

    run = parser.add_argument_group("run")
    run.add_argument(
        "--out", type=nonempty_path, required=True, metavar="REPORT", help="folder of the results"
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
        "--batch-size", type=positive, default=32, metavar="N", help="photos at a time (32)"
    )
    run.add_argument(
        "--chunk-size",
        type=positive,
        metavar="N",
        help="photos of a part; parts are what is resumed and what processes share "
        "(default: by the number of photos, at most 4096)",
    )
    run.add_argument(
        "--workers", type=count, metavar="N", help="loading processes (default: cores, at most 8)"
    )
    run.add_argument(
        "--device", default="auto", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)"
    )
    run.add_argument("--threads", type=threads, metavar="N", help="CPU threads (torch's)")
    run.add_argument(
        "--no-temperatures",
        action="store_true",
        help="leave out the temperature grid, nine tenths of the table; `anchornet calibrate "
        "--temperatures` needs it",
    )
    run.add_argument(
        "--log-interval",
        type=seconds,
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
        workers=min(8, usable_cores()) if args.workers is None else args.workers,
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
        wanted = _wanted(args, system)
        with RunLog(args.out, enabled=world.is_main, interval=args.log_interval) as log:
            times = _collect(args, system, listing, world, log, options)
            if world.is_main:
                _report(args, system, listing, world, log, wanted, times)
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
    if not args.no_report:
        require_matplotlib()  # before hours are spent
    require_folder(args.out, "--out")


def _open(args: argparse.Namespace, world: World) -> tuple[ExitSystem, Listing]:
    if args.backbone is None:
        from anchornet_ext.systems.common.loading import load_system

        system: ExitSystem = load_system(args.model, world.device)
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


@dataclass(frozen=True)
class _Wanted:
    """What the report is to show, read and checked before any work."""

    policies: Mapping[str, ExitPolicy]
    plain: Mapping[str, ExitTable]
    notes: Sequence[str]


def _wanted(args: argparse.Namespace, system: ExitSystem) -> _Wanted:
    macs = system.macs_per_exit()
    if system.num_exits == 1 and (args.policy or args.operating_points):
        raise ValueError("--policy and --operating-points are for systems of several exits")
    for budget in args.operating_points or ():
        if budget < macs[0]:
            raise ValueError(
                f"--operating-points: a budget of {quantities.short(budget)} multiply-adds is "
                f"below the {quantities.short(macs[0])} of the first exit"
            )
    why_no_grid = None
    if args.no_temperatures:
        why_no_grid = "--no-temperatures leaves them out of the table"
    elif not system.temperature_scales:
        why_no_grid = (
            "under the model's criterion 'probabilities' that of one exit changes all later ones, "
            "so that no table can have them"
        )
    policies: dict[str, ExitPolicy] = {}
    for path in args.policy:
        policy = ExitPolicy.load(path)
        require_fits(policy, f"--policy {path}", system.num_exits, why_no_grid)
        if path.stem in policies:
            raise ValueError(f"--policy: two files are called {path.stem!r}")
        policies[path.stem] = policy
    own = system.policy
    notes = []
    if own is not None:
        try:
            require_fits(own, "the model's own policy", system.num_exits, why_no_grid)
            policies[OWN_POLICY] = own
        except ValueError as error:  # nobody asked for it
            notes.append(f"Not measured: {error}.")
    return _Wanted(policies, {str(path): load_plain(path) for path in args.plain}, notes)


def _collect(
    args: argparse.Namespace,
    system: ExitSystem,
    listing: Listing,
    world: World,
    log: RunLog,
    options: CollectOptions,
) -> PassTimes | None:
    """Writes the exit table, and gives the times of the passes where they were measured."""
    parts = plan_parts(system, listing, args.out, options)
    if world.is_main:
        args.out.mkdir(parents=True, exist_ok=True)
        parts.begin(resume=options.resume, overwrite=options.overwrite)
    world.barrier()  # nobody looks at the parts before they are made ready
    parts.require_same()
    finished = parts.finished()
    missing = 0 if finished else len(parts.missing())
    log.line(
        f"{system.name}, {system.num_exits} exit{'s' if system.num_exits > 1 else ''}; "
        f"{len(listing)} photos of {listing.folder}; {missing} of {len(parts)} parts to do"
    )
    compute_parts(system, listing, parts, world, log, options)
    if not world.is_main:
        return None
    passes, milliseconds = None, None
    if not args.no_latency and (finished or parts.hold_images()):
        log.line("timing the exits")
        if isinstance(system, TwoStageSystem):
            passes = measure_passes(system.classifier, batch_size=args.batch_size)
            milliseconds = passes.milliseconds_per_exit
        else:
            milliseconds = exit_milliseconds(system, listing, args.batch_size, world.device)
    if not finished:
        merge_table(system, listing, parts, log, milliseconds)
    elif milliseconds is not None:
        # The table of an earlier run, which may have other times, or none.
        table = ExitTable.load(args.out / TABLE)
        replace(table, milliseconds=milliseconds).save(args.out / TABLE)
    return passes


def _report(
    args: argparse.Namespace,
    system: ExitSystem,
    listing: Listing,
    world: World,
    log: RunLog,
    wanted: _Wanted,
    passes: PassTimes | None,
) -> None:
    scaled = any(policy.temperatures is not None for policy in wanted.policies.values())
    table = ExitTable.load(args.out / TABLE, grid=scaled)
    data = assemble(
        table,
        system,
        listing.folder,
        log,
        budgets=args.operating_points,
        policies=wanted.policies,
        plain=wanted.plain,
        failures=read_failures(args.out),
    )
    data = replace(data, notes=[*wanted.notes, *data.notes])
    if not args.no_latency:
        log.line("timing real early exit")
        data = _timed(args, system, listing, world, table, data, wanted)
        LatencyReport(passes, data.latency).save(args.out / "latency.json")
    write_summary(args.out, data)
    if not args.no_report:
        gallery, notes = gallery_of(table, data.points, system, listing.folder)
        data = replace(data, gallery=gallery, notes=[*data.notes, *notes])
        write_report(args.out, data)
    for line in said_at_the_end(data):
        log.line(line)
    log.line(f"{'' if args.no_report else f'{PAGE}, '}{TABLE} and {SUMMARY} are in {args.out}")


def _timed(
    args: argparse.Namespace,
    system: ExitSystem,
    listing: Listing,
    world: World,
    table: ExitTable,
    data: ReportData,
    wanted: _Wanted,
) -> ReportData:
    """The report with the measured times of real early exit."""
    notes, plain = list(data.notes), None
    if wanted.plain:
        found = rebuild_plain(next(iter(wanted.plain.values())), world.device)
        if isinstance(found, str):
            notes.append(found)
        else:
            plain = found
    latency = time_runs(
        system,
        table,
        listing.folder,
        {point.name: point.policy for point in data.points},
        plain,
        args.batch_size,
        world.device,
        args.latency_images,
    )
    return replace(data, latency=latency, notes=notes)


def _budgets(text: str) -> tuple[float, ...]:
    return tuple(quantities.macs(word) for word in text.split(","))

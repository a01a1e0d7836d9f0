"""`anchornet train`: from a folder of photos to a classifier, by any of the systems."""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from anchornet_ext._arguments import count, nonempty_path, positive, seconds, threads, usable_cores
from anchornet_ext._files import require_folder
from anchornet_ext._options import need, read_options, to_json
from anchornet_ext.data.image_folder import (
    Samples,
    class_roots,
    find_training_images,
    sizes_digest,
)
from anchornet_ext.data.sources import CachedSource, FileSource
from anchornet_ext.data.transforms import Preprocessing
from anchornet_ext.systems import System
from anchornet_ext.systems.common.flags import add_system_arguments, chosen_recipe, chosen_system
from anchornet_ext.systems.common.system import MODEL

from .checkpoint import read_json, write_json
from .config import StageConfig, stage_config
from .distributed import World, join_world
from .loop import AMP_CHOICES, LoopOptions, Trainer
from .plan import Photos, Plan, Supply
from .run_log import RunLog


def _stage_list(system: System) -> Callable[[str], tuple[str, ...]]:
    known = [stage.name for stage in system.stages]

    def parse(text: str) -> tuple[str, ...]:
        names = [name.strip() for name in text.split(",") if name.strip()]
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise argparse.ArgumentTypeError(
                f"the stages of {system.name} are {', '.join(known)}, not "
                f"{', '.join(unknown) or repr(text)}"
            )
        return tuple(stage for stage in known if stage in names)  # in the order they need

    return parse


def add_arguments_for(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """The flags of `anchornet train`, which depend on the system that `words` choose."""
    # All flags in full would hide the error below them.
    parser.usage = f"{parser.prog} --data FOLDER --out RUN [--system NAME] [OPTIONS]"
    system = chosen_system(parser, words)
    recipe = chosen_recipe(system, words)
    parser.set_defaults(chosen=system, recipe=recipe)
    resize_size, crop_size = (recipe.resize_size, recipe.crop_size) if recipe else (256, 224)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        type=nonempty_path,
        required=True,
        metavar="FOLDER",
        help="has train/CLASS/* and val/CLASS/*, or CLASS/* with --val-fraction",
    )
    data.add_argument(
        "--val-fraction", type=float, metavar="X", help="share of each class held out, by --seed"
    )
    data.add_argument(
        "--cache",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="decode every photo once and keep it in memory",
    )
    data.add_argument(
        "--cache-short-side",
        type=positive,
        metavar="PIXELS",
        help="shrink larger photos to this short side on decoding, cached or not",
    )
    data.add_argument(
        "--workers", type=count, metavar="N", help="loading processes (cores, max. 8)"
    )
    data.add_argument(
        "--resize-size",
        type=positive,
        default=resize_size,
        metavar="PIXELS",
        help=f"validation short side ({resize_size})",
    )
    data.add_argument(
        "--crop-size",
        type=positive,
        default=crop_size,
        metavar="PIXELS",
        help=f"crop of a photo ({crop_size})",
    )

    run_group = parser.add_argument_group("run")
    run_group.add_argument(
        "--out", type=nonempty_path, required=True, metavar="RUN", help="result folder"
    )
    run_group.add_argument(
        "--stages",
        type=_stage_list(system),
        metavar="A,B",
        help=f"which to run ({','.join(stage.name for stage in system.stages)})",
    )
    run_group.add_argument("--resume", action="store_true", help="go on with the run in RUN")
    run_group.add_argument(
        "--overwrite", action="store_true", help="begin the named stages anew, losing their results"
    )
    run_group.add_argument(
        "--seed", type=count, default=0, metavar="N", help="of all randomness (0)"
    )
    run_group.add_argument("--tensorboard", action="store_true", help="write TensorBoard events")
    run_group.add_argument(
        "--log-interval", type=seconds, default=5.0, metavar="S", help="seconds between lines (5)"
    )

    compute = parser.add_argument_group("compute")
    compute.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ... (auto)")
    compute.add_argument(
        "--amp", choices=AMP_CHOICES, default="auto", help="mixed precision (auto: on CUDA only)"
    )
    compute.add_argument(
        "--channels-last",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="memory order of images and weights (on)",
    )
    compute.add_argument("--compile", action="store_true", help="use torch.compile")
    compute.add_argument("--sync-bn", action="store_true", help="batch norm over all GPUs")
    compute.add_argument("--deterministic", action="store_true", help="exact repeats on CUDA")
    compute.add_argument("--threads", type=threads, metavar="N", help="CPU threads of each process")
    add_system_arguments(parser, system, recipe)


def run(args: argparse.Namespace) -> int:
    """Trains the stages that were asked for and, when all that it needs are there, RUN/model.

    Raises:
        ValueError, OSError, ImportError: bad input, said before any work is done where possible.
    """
    _check(args)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    if args.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    elif torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True
    with join_world(args.device) as world:
        train, val = find_training_images(args.data, args.val_fraction, args.seed)
        _require_classes(args, train)
        plan = _plan(args, train)
        system: System = args.chosen
        stages = args.stages or system.stages_to_run(plan.options)
        _require_batches(plan, stages, world)
        system.require(plan, stages, world)
        _require_run_of(system, plan)
        if not (args.resume or args.overwrite):
            _require_unused(plan, stages)
        world.barrier()  # nobody writes before everybody has looked
        with RunLog(
            args.out,
            enabled=world.is_main,
            interval=args.log_interval,
            tensorboard=args.tensorboard,
        ) as log:
            if args.overwrite and world.is_main:
                for stage in stages:
                    shutil.rmtree(plan.run / stage, ignore_errors=True)
            world.barrier()
            _train(args, system, plan, stages, train, val, world, log)
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.workers is None:
        args.workers = min(8, usable_cores())
    need(args.seed < 2**63, "seed", "below 2^63", args.seed)
    if args.resume and args.overwrite:
        raise ValueError("--resume and --overwrite exclude each other")
    require_folder(args.out, "--out")


def _digest(samples: Samples) -> str:
    """Of the photos' names and classes, not of where their folder lies."""
    names = (
        f"{label}/{Path(path).name}"
        for path, label in zip(samples.paths, samples.labels, strict=True)
    )
    return hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()[:16]


def _data_identity(train: Samples, val: Samples) -> dict[str, Any]:
    """Of the photos, by what can be told without reading them; for a stage that is resumed."""
    return {
        f"{what} of the {name} images" if what else f"{name} images": value
        for name, samples in (("training", train), ("validation", val))
        for what, value in (
            ("", len(samples)),
            ("names", _digest(samples)),
            ("file sizes", sizes_digest(samples.paths)),
        )
    }


def _plan(args: argparse.Namespace, train: Samples) -> Plan:
    system: System = args.chosen
    preprocessing = Preprocessing(resize_size=args.resize_size, crop_size=args.crop_size)
    configs: dict[str, StageConfig] = {}
    for stage in system.stages:
        config = stage_config(args, stage)
        if "size" in stage.without:
            config = replace(config, size=args.crop_size)
        configs[stage.name] = config
    return Plan(
        run=args.out,
        class_names=train.class_names,
        preprocessing=preprocessing,
        options=read_options(args, system.Options),
        configs=configs,
        seed=args.seed,
        workers=args.workers,
    )


def _require_batches(plan: Plan, stages: Sequence[str], world: World) -> None:
    for stage in stages:
        batch = plan.configs[stage].batch
        if batch % world.size:
            raise ValueError(
                f"--{stage}-batch {batch} does not divide among {world.size} processes"
            )
        try:
            plan.configs[stage].augmentation(plan.preprocessing.crop_size)
        except ValueError as error:
            raise ValueError(f"stage {stage}: {error}") from error


def _identity(system: System, plan: Plan) -> dict[str, Any]:
    """What every stage in RUN must agree on."""
    return {
        "classes": list(plan.class_names),
        "system": system.name,
        **system.identity(plan.options),
        "preprocessing": plan.preprocessing.to_dict(),
    }


def _require_run_of(system: System, plan: Plan) -> None:
    """Raises ValueError where RUN belongs to other classes, another system, or other settings."""
    before = read_json(plan.run / "config.json")
    if not before:
        return
    before = {"system": "anchornet", **before}  # of before there were others
    for key, value in _identity(system, plan).items():
        if key in before and before[key] != value:
            shown = (
                f"{len(before.get(key, []))} classes, not these {plan.num_classes}"
                if key == "classes"
                else f"{key} {before.get(key)}, not {value}"
            )
            raise ValueError(f"{str(plan.run)!r} was begun with {shown}; use another --out")


def _require_unused(plan: Plan, stages: Sequence[str]) -> None:
    used = [stage for stage in stages if (plan.run / stage / "last.pt").exists()]
    if used:
        raise ValueError(
            f"{str(plan.run)!r} already holds a run of stage {used[0]}; use --resume to go on "
            "with it, --overwrite to begin anew, or another --out"
        )


def _train(
    args: argparse.Namespace,
    system: System,
    plan: Plan,
    stages: Sequence[str],
    train: Samples,
    val: Samples,
    world: World,
    log: RunLog,
) -> None:
    _record(args, plan, stages, world, log, len(train), len(val))
    if unseen := sorted(set(range(plan.num_classes)) - set(val.labels)):
        names = [val.class_names[label] for label in unseen[:5]] + ["..."] * (len(unseen) > 5)
        log.line(f"no validation images of {len(unseen)} classes: {', '.join(names)}")
    photos = [_open(args, samples, name, log) for name, samples in (("train", train), ("val", val))]
    supply = Supply(photos[0], photos[1], world, log)
    options = LoopOptions(
        amp=args.amp,
        channels_last=args.channels_last,
        compile=args.compile,
        sync_batch_norm=args.sync_bn,
        resume=args.resume,
        seed=args.seed,
    )
    images = _data_identity(train, val)
    for stage in stages:
        torch.manual_seed(plan.seed)  # what a network starts from when nothing else says so
        task = system.task(stage, plan, supply)
        identity = {
            **_identity(system, plan),
            "seed": plan.seed,
            **images,
            **system.stage_identity(plan.options),
        }
        trainer = Trainer(task, plan.run / stage, world, options, log, identity)
        result = trainer.fit()
        log.line(
            f"{stage}: best validation top-1 {100 * result.best_top1:.2f}% "
            f"after epoch {result.best_epoch}, in {trainer.best_path}"
        )
        # Persistent workers hold their memory until their loader goes.
        del trainer, task
    if world.is_main:
        missing = system.finish(plan)
        if missing:
            log.line(f"no model yet: {', '.join(missing)} still to train")
        else:
            log.line(f"the classifier is in {plan.run / MODEL}")
    world.barrier()


def _require_classes(args: argparse.Namespace, train: Samples) -> None:
    """
    Raises:
        ValueError: there is one class only, or the run would lie where the folders of classes are.
    """
    roots = class_roots(args.data)
    if len(train.class_names) < 2:
        raise ValueError(
            f"{str(roots[0])!r} has one class, {train.class_names[0]!r}, and so nothing to tell "
            "apart: each folder in it is a class"
        )
    for root in roots:
        try:
            below = args.out.resolve().relative_to(root.resolve())
        except ValueError:
            continue
        if not any(part.startswith(".") for part in below.parts[:1]):
            raise ValueError(
                f"--out {str(args.out)!r} is among the classes in {str(root)!r} and would be taken "
                "for one of them when the run is resumed"
            )


def _open(args: argparse.Namespace, samples: Samples, name: str, log: RunLog) -> Photos:
    if not args.cache:
        return Photos(FileSource(samples.paths, args.cache_short_side), samples)
    log.begin(f"decoding {name}", len(samples))
    try:
        source = CachedSource(
            samples.paths,
            args.cache_short_side,
            threads=torch.get_num_threads(),
            on_progress=log.update,
        )
    except MemoryError as error:
        raise ValueError(str(error)) from error
    finally:
        log.end()
    for reason in source.unreadable.values():
        log.once(f"skipped an unreadable image: {reason}")
    return Photos(source, samples)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__}
    for package in ("anchornet_ext", "torchvision", "pillow", "numpy", "timm"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _in_words(config: StageConfig) -> str:
    """What is asked about first; config.json has all of it."""
    falls = config.schedule
    if falls == "step":
        falls += " at " + " ".join(f"{place:g}" for place in config.milestones) + " %"
    crops = f"pad {config.pad} and crop" if config.pad else "crops of random size"
    return (
        f"{config.epochs} epochs, batch {config.batch}, {config.optimizer}, "
        f"learning rate {config.lr:g}, {falls}, weight decay {config.weight_decay:g}, {crops}"
    )


def _record(
    args: argparse.Namespace,
    plan: Plan,
    stages: Sequence[str],
    world: World,
    log: RunLog,
    train_count: int,
    val_count: int,
) -> None:
    """Says in log.txt and config.json what is about to be done, and with what."""
    system: System = args.chosen
    command = shlex.join(["anchornet", *sys.argv[1:]])
    log.line(f"$ {command}")
    versions = _versions()
    log.line(", ".join(f"{name} {number}" for name, number in versions.items()))
    log.line(
        f"{train_count} training and {val_count} validation images of {plan.num_classes} "
        f"classes; {world.size} process(es) on {_device_name(world.device)}, "
        f"{torch.get_num_threads()} threads, {plan.workers} workers"
    )
    if args.recipe is not None:
        log.line(f"where no flag says otherwise, the settings are {args.recipe.source}")
    for stage in stages:
        log.line(f"{stage}: {_in_words(plan.configs[stage])}")
    if not world.is_main:
        return
    path = plan.run / "config.json"
    before = read_json(path)
    configs: Mapping[str, Any] = {
        **before.get("stages", {}),
        **{stage: plan.configs[stage].to_dict() for stage in stages},
    }
    write_json(
        path,
        {
            "commands": [*before.get("commands", []), command],
            "versions": versions,
            "seed": plan.seed,
            "training_images": train_count,
            "validation_images": val_count,
            **to_json(plan.options),
            "stages": configs,
            **_identity(system, plan),
        },
    )

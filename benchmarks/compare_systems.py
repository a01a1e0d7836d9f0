"""Trains every system on one image folder with the same training compute, and compares them.

    python benchmarks/compare_systems.py calibrate --data DATA --out RUNS
    python benchmarks/compare_systems.py train --data DATA --out RUNS
    python benchmarks/compare_systems.py evaluate --data DATA --out RUNS
    python benchmarks/compare_systems.py time --data DATA --out RUNS
    python benchmarks/compare_systems.py compare --data DATA --out RUNS

DATA has train/CLASS/* and val/CLASS/*. Each step runs `anchornet` commands and prints them. The
epochs are those of docs/comparison.md, ten minutes of one CPU core for each system; `--scale 10`
trains ten times as long. A step that was interrupted goes on where it was.

`calibrate` says what the epochs would take here: it trains every stage on a few photos, once. Where
they do not take the same time, other epochs are fairer. It and `time` are steps of their own
because nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import json
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compared_runs import add_cpu_seconds, link, photos_of

from anchornet_ext.training.run_log import write_csv, write_text

BACKBONE = "timm/regnety_002"
#: One recipe for all stages; what differs from it is said where it does.
RECIPE = {
    "batch": "64",
    "optimizer": "adamw",
    "weight-decay": "0.05",
    "label-smoothing": "0.1",
    # Steps at shares of the epochs, the published schedule of some, leave little of a few epochs.
    "schedule": "cosine",
    "crop-scale": "0.25 1",
}
#: Learning rates of random weights, and of weights that an earlier stage has trained.
SCRATCH, TUNING = "2e-3", "5e-4"
#: Of each class, for `calibrate`.
CALIBRATION_PHOTOS = {"train": 13, "val": 2}
TRAIN_FLAGS = "--cache --cache-short-side 256 --threads 1 --workers 0 --amp bf16 --log-interval 60"


@dataclass(frozen=True)
class Stage:
    """How long a stage is trained, and what of it is not RECIPE.

    Attributes:
        epochs: at --scale 1.
        lr: its learning rate.
        other: values of further flags, by name; None leaves one of RECIPE out.
    """

    epochs: int
    lr: str = SCRATCH
    other: Mapping[str, str | None] = field(default_factory=dict)

    def epochs_at(self, scale: float) -> int:
        """At --scale `scale`, at least one."""
        return max(1, round(self.epochs * scale))

    def flags(self, name: str, scale: float) -> list[str]:
        """The flags of the stage called `name`."""
        epochs = self.epochs_at(scale)
        values = {"epochs": str(epochs), "lr": self.lr, **RECIPE, **self.other}
        if self.lr == SCRATCH:
            values["warmup-epochs"] = f"{epochs / 10:g}"
        flags = [f"--no-{name}-norm-weight-decay"]
        for key, value in values.items():
            flags += [] if value is None else [f"--{name}-{key}", *value.split()]
        return flags


@dataclass(frozen=True)
class Entry:
    """A system, its options and its stages.

    Attributes:
        system, options: of `anchornet train`.
        crop: side in pixels of what it sees of a photo.
        stages: by name.
    """

    system: str
    options: str
    crop: int
    stages: Mapping[str, Stage]

    def command(self, data: Path, run: Path, scale: float) -> list[str]:
        """`anchornet` and these arguments train it."""
        side = ["--crop-size", str(self.crop), "--resize-size", str(round(self.crop * 8 / 7))]
        command = ["train", "--system", self.system, *self.options.split(), *side]
        command += ["--data", str(data), "--out", str(run), *TRAIN_FLAGS.split()]
        return command + [
            flag for name, stage in self.stages.items() for flag in stage.flags(name, scale)
        ]


#: The sizes and widths are chosen such that all take similar CPU time, with enough epochs to learn
#: something in it.
ENTRIES = {
    "plain": Entry("plain", f"--backbone {BACKBONE}", 128, {"network": Stage(15)}),
    "anchornet": Entry(
        "anchornet",
        f"--backbone {BACKBONE} --num-patches 2",
        224,
        {
            "backbone": Stage(9, other={"size": "96"}),
            "anchor": Stage(2),
            "glance": Stage(3, TUNING),
            "focus": Stage(2, TUNING),
        },
    ),
    "gfnet": Entry(
        "gfnet",
        f"--backbone {BACKBONE} --num-exits 3 --patch-size 96 --encoder-lr {TUNING}",
        224,
        {
            "backbone": Stage(9, other={"size": "96"}),
            "glance": Stage(2, TUNING),
            "sequence": Stage(2, "1e-3"),
            # Its reward wants one label for each photo.
            "policy": Stage(2, "3e-4", {"label-smoothing": None, "schedule": None}),
            "refine": Stage(1, "1e-3"),
        },
    ),
    "msdnet": Entry(
        "msdnet",
        "--preset imagenet-base4 --base 2 --step 2 --channels 16 --growth 8",
        96,
        {"network": Stage(22)},
    ),
    "ranet": Entry(
        "ranet",
        "--preset imagenet --scales 1 2 3 --factors 4 2 1 --bottlenecks 4 2 1 --step 2 "
        "--channels 16 --growth 8",
        96,
        {"network": Stage(22)},
    ),
    "cascade": Entry(
        "cascade",
        f"--small-backbone {BACKBONE} --small-input 64 "
        f"--large-backbone {BACKBONE} --large-input 96",
        96,
        {"small": Stage(12), "large": Stage(14)},
    ),
    # What SAR is made from, to tell what its cells do from what a ResNet does.
    "plain-resnet18": Entry("plain", "--backbone resnet18", 64, {"network": Stage(15)}),
    "sar": Entry("sar", "--backbone resnet18 --cells 2", 64, {"network": Stage(16)}),
}


def anchornet(command: Sequence[str]) -> None:
    """Runs `anchornet COMMAND`, which must succeed."""
    print("$ anchornet", shlex.join(command), flush=True)
    subprocess.run([sys.executable, "-m", "anchornet_ext.cli", *command], check=True)


def cpu_seconds() -> float:
    """What all commands so far have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def calibrate(names: Sequence[str], args: argparse.Namespace) -> None:
    """Prints what an epoch of each stage takes here, and all epochs; RUNS/calibration.json has it.

    Measured on a few photos of each class and multiplied, start and decoding left out.
    """
    few, runs = args.out / "calibration" / "data", args.out / "calibration"
    more = {
        part: _link_photos(args.data / part, few / part, count)
        for part, count in CALIBRATION_PHOTOS.items()
    }
    found: dict[str, dict[str, float]] = {}
    for name in names:
        run = runs / name
        shutil.rmtree(run, ignore_errors=True)
        anchornet(ENTRIES[name].command(few, run, 0.0))
        found[name] = {}
        for stage in ENTRIES[name].stages:
            with (run / stage / "log.csv").open(newline="") as file:
                row = list(csv.DictReader(file))[-1]
            training, all_of_it = float(row["train_seconds"]), float(row["seconds"])
            found[name][stage] = training * more["train"] + (all_of_it - training) * more["val"]
    write_text(args.out / "calibration.json", json.dumps(found, indent=1))
    for name, stages in found.items():
        epochs = {key: stage.epochs_at(args.scale) for key, stage in ENTRIES[name].stages.items()}
        each = ", ".join(f"{key} {epochs[key]} x {stages[key]:.1f} s" for key in stages)
        print(f"{name}: {sum(epochs[key] * stages[key] for key in stages):.0f} s ({each})")


def _link_photos(source: Path, folder: Path, count: int) -> float:
    """FOLDER gets links to the first `count` photos of each class; how many more SOURCE has."""
    everything = taken = 0
    for label in sorted(path for path in source.iterdir() if path.is_dir()):
        photos = photos_of(label)
        link(photos[:count], folder / label.name)
        everything += len(photos)
        taken += min(count, len(photos))
    return everything / taken


def train(names: Sequence[str], args: argparse.Namespace) -> None:
    """Trains them one after the other, and keeps in RUN/cpu_seconds.json what each part took.

    Several processes can do so side by side: each takes what no other one has.
    """
    args.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        run = args.out / name
        with (args.out / f"{name}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"{name} is being trained by another process")
                continue
            if (run / "model").is_dir():
                print(f"{name} is trained already")
                continue
            command = ENTRIES[name].command(args.data, run, args.scale)
            if run.is_dir():
                command.append("--resume")
            before = cpu_seconds()
            try:
                anchornet(command)
            finally:  # an interrupted run has cost something too
                if run.is_dir():
                    add_cpu_seconds(run, cpu_seconds() - before)


def evaluate(names: Sequence[str], args: argparse.Namespace) -> None:
    """Accuracy at all exits, and no times."""
    for name in names:
        anchornet([*_evaluation(name, args), "--no-latency", "--resume"])


def measure_times(names: Sequence[str], args: argparse.Namespace) -> None:
    """Times of real early exit, one system after the other."""
    few = ["--latency-images", str(args.latency_images)] if args.latency_images else []
    for name in names:
        anchornet([*_evaluation(name, args), "--resume", *few])


def _evaluation(name: str, args: argparse.Namespace) -> list[str]:
    model, report = str(args.out / name), str(args.out / "reports" / name)
    command = ["evaluate", "--model", model, "--data", str(args.data / "val"), "--out", report]
    return [*command, "--no-temperatures", "--threads", "1", "--workers", "0"]


def compare(names: Sequence[str], args: argparse.Namespace) -> None:
    """One report of all, and what each was trained with."""
    reports = [f"{name}={args.out / 'reports' / name}" for name in names]
    anchornet(["compare", *reports, "--out", str(args.out / "comparison")])
    rows = [training_of(name, args.out / name) for name in names]
    path = args.out / "comparison" / "training.csv"
    write_csv(path, rows)
    print(f"wrote {path}")


def training_of(name: str, run: Path) -> dict[str, Any]:
    """What the training of a run was: parameters, epochs, multiply-adds, CPU time.

    The multiply-adds are three times those of a forward pass for what learns (once forward, twice
    backward), once for what only runs; those of validation are not counted.
    """
    import torch
    from safetensors.torch import load_file

    from anchornet_ext.systems.common.loading import load_system

    config = json.loads((run / "config.json").read_text())
    system = load_system(run, torch.device("cpu"))
    per_image = MACS_OF_STAGES[ENTRIES[name].system](system)
    epochs = {stage: config["stages"][stage]["epochs"] for stage in per_image}
    macs = sum(epochs[stage] * config["training_images"] * per_image[stage] for stage in epochs)
    weights = [load_file(path) for path in (run / "model").rglob("*.safetensors")]
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    parameters = sum(
        tensor.numel()
        for part in weights
        for key, tensor in part.items()
        if not key.endswith(buffers)
    )
    return {
        "system": name,
        "parameters": parameters,
        "epochs": " ".join(f"{stage} {count}" for stage, count in epochs.items()),
        "training_macs": macs,
        "cpu_seconds": round(sum(json.loads((run / "cpu_seconds.json").read_text()))),
    }


def _network(system: Any) -> dict[str, int]:
    return {"network": 3 * system.macs_per_exit()[-1]}


def _cascade(system: Any) -> dict[str, int]:
    small, both = system.macs_per_exit()
    return {"small": 3 * small, "large": 3 * (both - small)}


def _sar(system: Any) -> dict[str, int]:
    # Trained with everything computed and masked.
    import torch

    side = system.preprocessing.crop_size
    return {"network": 3 * system.classify(torch.zeros(1, 3, side, side)).full_macs}


def _anchornet(system: Any) -> dict[str, int]:
    macs = system.macs_per_exit()
    patch = macs[-1] - macs[-2]
    localise = macs[1] - macs[0] - patch
    return {
        "backbone": 3 * patch,  # at the patches' size
        "anchor": 3 * localise,
        "glance": 3 * macs[0],
        "focus": localise + 3 * patch * (len(macs) - 1),
    }


def _gfnet(system: Any) -> dict[str, int]:
    macs = system.macs_per_exit()
    return {
        "backbone": 3 * macs[0],
        "glance": 3 * macs[0],
        "sequence": 3 * macs[-1],
        "policy": macs[-1],
        "refine": 3 * macs[-1],
    }


#: For each system: its evaluated model to the multiply-adds of one photo in one epoch, by stage.
MACS_OF_STAGES: Mapping[str, Callable[[Any], dict[str, int]]] = {
    "plain": _network,
    "msdnet": _network,
    "ranet": _network,
    "cascade": _cascade,
    "sar": _sar,
    "anchornet": _anchornet,
    "gfnet": _gfnet,
}
STEPS = {
    "calibrate": calibrate,
    "train": train,
    "evaluate": evaluate,
    "time": measure_times,
    "compare": compare,
}


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=tuple(STEPS))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="RUNS")
    parser.add_argument("--systems", default=",".join(ENTRIES), metavar="A,B", help="(all)")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies all epochs (1)")
    parser.add_argument("--latency-images", type=int, help="see anchornet evaluate --help")
    args = parser.parse_args(words)
    names = args.systems.split(",")
    for name in names:
        if name not in ENTRIES:
            parser.error(f"--systems: {name!r} is none of {', '.join(ENTRIES)}")
    STEPS[args.step](names, args)


if __name__ == "__main__":
    main()

"""Trains RANet, MSDNet, SAR-ResNet-32 and ResNet-32 on CIFAR-10, and compares them.

    python benchmarks/compare_cifar10.py train --data CIFAR10 --out RUNS
    python benchmarks/compare_cifar10.py evaluate --data CIFAR10 --out RUNS
    python benchmarks/compare_cifar10.py time --data CIFAR10 --out RUNS
    python benchmarks/compare_cifar10.py compare --data CIFAR10 --out RUNS

CIFAR10 has train/CLASS/* and val/CLASS/*, 32 x 32 pixels. This is the papers' training, 300 epochs
of all images: for a GPU. With --few it is that of docs/comparison-cifar10.md: a few epochs of 1000
images a class, about the same CPU time for each, on one core. Each step runs `anchornet` commands
and prints them. One that was interrupted goes on where it was.

`time` is a step of its own because nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import json
import resource
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compared_runs import add_cpu_seconds, link, photos_of
from safetensors.torch import load_file

from anchornet_ext.systems.common.storage import WEIGHTS
from anchornet_ext.systems.common.system import MODEL
from anchornet_ext.training.run_log import write_csv

#: Passes over the images in the papers on RANet, MSDNet and SAR (all but one figure of it).
EPOCHS = 300
#: With --few: images a class, and what replaces the papers' schedules, the same for all. A cosine
#: has fallen to the end however few the epochs. 0.1 is what SAR's rule says for batches of 64.
IMAGES_PER_CLASS = 1000
FEW = (
    "--network-batch 64 --network-lr 0.1 --network-schedule cosine --network-pad 4 "
    "--amp bf16 --threads 1 --workers 0"
)
#: Of the images of a class that are trained on, how many are held out to choose the epoch.
HELD_OUT = 10


@dataclass(frozen=True)
class Entry:
    """A system as the papers train it, and as --few does.

    Attributes:
        options: of `anchornet train`; the preset's or backbone's training settings come with it.
        few: instead of `options`.
        epochs: with --few; they take about the same CPU time.
    """

    options: str
    few: str
    epochs: int


ENTRIES: Mapping[str, Entry] = {
    "ranet": Entry(
        "--system ranet --preset cifar",
        # A quarter of the CPU time of `cifar`.
        "--system ranet --preset cifar-growing",
        2,
    ),
    "msdnet": Entry(
        "--system msdnet --preset cifar-batch",
        "--system msdnet --preset cifar-batch",
        3,
    ),
    "sar": Entry(
        "--system sar --backbone resnet32",
        "--system sar --backbone resnet32",
        3,
    ),
    "resnet32": Entry(
        "--system plain --backbone cifar/resnet32",
        "--system plain --backbone cifar/resnet32 --network-nesterov",
        7,
    ),
}


def train_command(name: str, args: argparse.Namespace) -> list[str]:
    """`anchornet` and these arguments train it."""
    entry = ENTRIES[name]
    options = f"{entry.few} {FEW}" if args.few else entry.options
    epochs = args.epochs or (entry.epochs if args.few else EPOCHS)
    data = args.out / "data" if args.few else args.data
    command = ["train", *options.split(), "--network-epochs", str(epochs), "--cache"]
    return [*command, "--data", str(data), "--out", str(args.out / name), *shlex.split(args.flags)]


def train(names: Sequence[str], args: argparse.Namespace) -> None:
    """Trains them one after the other, and keeps in RUN/cpu_seconds.json what each part took."""
    if args.few:
        link_images(args.data / "train", args.out / "data", args.images_per_class)
    for name in names:
        run = args.out / name
        if (run / MODEL).is_dir():
            print(f"{name} is trained already")
            continue
        more = ["--resume"] if run.is_dir() else []
        seconds = anchornet([*train_command(name, args), *more])
        add_cpu_seconds(run, seconds)


def link_images(source: Path, folder: Path, count: int) -> None:
    """FOLDER/train gets links to the first `count` images of each class, FOLDER/val to the last.

    Raises:
        ValueError: a class has too few images for both.
    """
    held_out = max(1, count // HELD_OUT)
    for names in sorted(path for path in source.iterdir() if path.is_dir()):
        images = photos_of(names)
        if len(images) < count + held_out:
            raise ValueError(
                f"{names} has {len(images)} images; --images-per-class {count} and {held_out} to "
                f"choose the epoch on need {count + held_out}"
            )
        for part, some in (("train", images[:count]), ("val", images[-held_out:])):
            link(some, folder / part / names.name)


def evaluate(names: Sequence[str], args: argparse.Namespace) -> None:
    """Accuracy at all exits, and no times."""
    for name in names:
        anchornet([*_evaluation(name, args), "--no-latency"])


def measure_times(names: Sequence[str], args: argparse.Namespace) -> None:
    """Times of real early exit on one thread, one system after the other."""
    for name in names:
        anchornet(_evaluation(name, args))


def _evaluation(name: str, args: argparse.Namespace) -> list[str]:
    model, report = str(args.out / name), str(args.out / "reports" / name)
    command = ["evaluate", "--model", model, "--data", str(args.data / "val"), "--out", report]
    return [*command, "--no-temperatures", "--threads", "1", "--workers", "0", "--resume"]


def compare(names: Sequence[str], args: argparse.Namespace) -> None:
    """One report of all, and what each was trained with."""
    reports = [f"{name}={args.out / 'reports' / name}" for name in names]
    budgets = ["--budgets", args.budgets] if args.budgets else []
    anchornet(["compare", *reports, *budgets, "--out", str(args.out / "comparison")])
    rows = [training_of(args.out / name) for name in names]
    path = args.out / "comparison" / "training.csv"
    write_csv(path, rows)
    print(f"wrote {path}")


def training_of(run: Path) -> dict[str, object]:
    """What a run was trained with: parameters, epochs, images of each, CPU seconds of it all."""
    config = json.loads((run / "config.json").read_text())
    weights = load_file(run / MODEL / WEIGHTS)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    return {
        "system": run.name,
        "parameters": sum(
            tensor.numel() for key, tensor in weights.items() if not key.endswith(statistics)
        ),
        "epochs": config["stages"]["network"]["epochs"],
        "training_images": config["training_images"],
        "cpu_seconds": round(sum(json.loads((run / "cpu_seconds.json").read_text()))),
    }


def anchornet(command: Sequence[str]) -> float:
    """Runs `anchornet COMMAND`, which must succeed, and returns its CPU seconds."""
    print("$ anchornet", shlex.join(command), flush=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "anchornet_ext.cli", *command], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


STEPS = {"train": train, "evaluate": evaluate, "time": measure_times, "compare": compare}


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=tuple(STEPS))
    parser.add_argument("--data", type=Path, required=True, metavar="CIFAR10")
    parser.add_argument("--out", type=Path, required=True, metavar="RUNS")
    parser.add_argument("--systems", default=",".join(ENTRIES), metavar="A,B", help="(all)")
    parser.add_argument("--few", action="store_true", help="few epochs of some images, on a CPU")
    parser.add_argument("--epochs", type=int, metavar="N", help=f"of all ({EPOCHS})")
    parser.add_argument(
        "--images-per-class", type=int, default=IMAGES_PER_CLASS, metavar="N", help="with --few"
    )
    parser.add_argument(
        "--flags", default="", metavar="'...'", help="further flags of `anchornet train`"
    )
    parser.add_argument(
        "--budgets", metavar="A,B", help="mean multiply-adds to compare at, see `anchornet compare`"
    )
    args = parser.parse_args(words)
    names = args.systems.split(",")
    for name in names:
        if name not in ENTRIES:
            parser.error(f"--systems: {name!r} is none of {', '.join(ENTRIES)}")
    STEPS[args.step](names, args)


if __name__ == "__main__":
    main()

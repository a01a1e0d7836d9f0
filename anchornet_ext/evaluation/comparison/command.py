"""`anchornet compare`: several systems on the same images, in one report."""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from anchornet_ext._arguments import argument, count, nonempty_path
from anchornet_ext._files import require_folder
from anchornet_ext._version import __version__
from anchornet_ext.evaluation.curves import Costs
from anchornet_ext.evaluation.parts import TABLE
from anchornet_ext.evaluation.theme import require_matplotlib
from anchornet_ext.policy import quantities

from .entries import Entry, distinct_names, read_entry, same_conditions, same_images
from .report import RESULT, compare_entries, said, write_comparison


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `anchornet compare`."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folders that `anchornet evaluate` wrote, or exit tables (.npz), of the same images; "
        "NAME=FOLDER calls one by another name",
    )
    parser.add_argument(
        "--out", type=nonempty_path, required=True, metavar="REPORT", help="folder of the results"
    )
    parser.add_argument(
        "--budgets",
        type=argument(_macs_list),
        metavar="A,B,...",
        help="mean multiply-adds to compare at, 20M or 1.2G each (default: five that are chosen)",
    )
    parser.add_argument(
        "--time-budgets",
        type=argument(_time_list),
        metavar="A,B,...",
        help="mean times to compare at, 3ms or 250us each (default: five that are chosen)",
    )
    parser.add_argument(
        "--common-images",
        action="store_true",
        help="where some tables lack images, compare on those that all have",
    )
    parser.add_argument(
        "--seed", type=count, default=0, metavar="N", help="of the halves of the images (0)"
    )


def run(args: argparse.Namespace) -> int:
    """Compares, and writes the results into REPORT.

    Raises:
        ValueError, OSError, ImportError: a table is missing, damaged or of other images than the
            others, or REPORT cannot be used.
    """
    require_matplotlib()
    _require_own(args.out)
    entries = _read(args.runs)
    counts = [entry.table.num_images for entry in entries]
    entries = same_conditions(same_images(entries, common=args.common_images))
    budgets: dict[Costs, Sequence[float]] = {}
    if args.budgets:
        budgets["macs"] = args.budgets
    if args.time_budgets:
        budgets["milliseconds"] = args.time_budgets
    found = compare_entries(entries, budgets, seed=args.seed)
    page = write_comparison(args.out, found, _facts(args, entries, counts))
    for line in said(found):
        print(line)
    print(f"wrote {page}")
    return 0


def _read(words: Sequence[str]) -> list[Entry]:
    if len(words) < 2:
        raise ValueError(f"a comparison needs two evaluations or more, got {len(words)}")
    entries = []
    for word in words:
        name, separator, path = word.partition("=")
        if not separator or Path(word).exists():
            name, path = "", word
        elif not name:
            raise ValueError(f"{word!r} gives an empty name")
        entries.append(read_entry(Path(path), name or None))
    return distinct_names(entries)


def _require_own(out: Path) -> None:
    """Raises ValueError or OSError where REPORT is not a comparison's, or cannot be written."""
    require_folder(out, "--out")
    if (out / TABLE).exists():
        raise ValueError(f"--out {str(out)!r} holds an evaluation, which would be overwritten")
    if out.is_dir() and any(out.iterdir()) and not (out / RESULT).exists():
        raise ValueError(f"--out {str(out)!r} is not empty and holds no comparison")


def _facts(
    args: argparse.Namespace, entries: Sequence[Entry], counts: Sequence[int]
) -> Mapping[str, str]:
    facts = {"command": shlex.join(["anchornet", *sys.argv[1:]])}
    for entry in entries:
        facts[entry.name] = str(entry.path)
    used = entries[0].table.num_images
    if max(counts) > used:
        facts["images left out"] = f"the tables have up to {max(counts)}, all of them {used}"
    timed = next((entry.conditions for entry in entries if entry.times), None)
    if timed is not None:
        facts["times"] = "each system by itself, real early exit; " + ", ".join(
            f"{key} {value}" for key, value in timed.items()
        )
    facts["seed"] = str(args.seed)
    facts["versions"] = f"anchornet_ext {__version__}, Python {platform.python_version()}"
    return facts


def _macs_list(text: str) -> tuple[float, ...]:
    return tuple(quantities.macs(word) for word in text.split(","))


def _time_list(text: str) -> tuple[float, ...]:
    return tuple(quantities.milliseconds(word) for word in text.split(","))

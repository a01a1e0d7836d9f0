"""`anchornet bench`: how fast everything is on this machine."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import torch

from anchornet_ext import _extension
from anchornet_ext._arguments import argument, nonempty_path, positive, threads
from anchornet_ext._files import require_file
from anchornet_ext._machine import pick_device, using_threads

from .compare import compare, describe
from .environment import Environment
from .freed_memory import keep_freed_memory
from .harness import Options, Suite, one_line
from .rows import Results, Row
from .suites import SUITES, load_suite
from .table import Table

DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "uint8": torch.uint8,
}
#: Seconds between two writings of the file, so that writing disturbs the measuring little.
_BETWEEN_SAVES = 5.0
_NOT_RECORDED = ("suites", "json", "update", "compare", "show")

T = TypeVar("T")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of `anchornet bench`, those of all suites among them."""
    parser.usage = f"{parser.prog} [SUITE ...] [OPTIONS]"  # all in full would hide the error
    parser.add_argument(
        "suites",
        nargs="*",
        metavar="SUITE",
        type=argument(_suite),
        help=f"what to measure: {', '.join(SUITES)} (default: all)",
    )
    parser.add_argument(
        "--batches", type=positive, nargs="+", metavar="B", help="images of a batch"
    )
    parser.add_argument(
        "--sizes", type=positive, nargs="+", metavar="PIXELS", help="sides of the images"
    )
    parser.add_argument(
        "--backbones", nargs="+", metavar="NAME", help="of torchvision, or of timm as timm/NAME"
    )
    parser.add_argument(
        "--dtypes",
        nargs="+",
        choices=DTYPES,
        metavar="DTYPE",
        help=f"to measure in: {', '.join(DTYPES)}",
    )
    parser.add_argument("--threads", type=threads, metavar="N", help="CPU threads (torch's)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (cpu)")
    parser.add_argument(
        "--repeats", type=positive, metavar="R", help="rounds of each measurement (most often 15)"
    )
    parser.add_argument(
        "--freed-memory",
        choices=("kept", "returned"),
        default="kept",
        help="kept by the process, or returned to the system where the C library likes to, whose "
        "new pages then cost those that need much memory (kept)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="few small cases, to see that all runs; the times mean little",
    )
    parser.add_argument(
        "--json", type=nonempty_path, metavar="FILE", help="write the rows to this file"
    )
    parser.add_argument(
        "--update",
        action="store_true",
        help="keep the rows that FILE has already and that are not measured now, to measure in "
        "several runs",
    )
    parser.add_argument(
        "--compare", type=nonempty_path, metavar="OLD", help="then compare with this earlier file"
    )
    parser.add_argument(
        "--show",
        type=nonempty_path,
        metavar="FILE",
        help="measure nothing: show the rows of this file, and compare those",
    )
    for name in SUITES:
        suite = load_suite(name)
        if hasattr(suite, "add_arguments"):
            suite.add_arguments(parser.add_argument_group(f"of the suite {name}", suite.SUMMARY))
    parser.set_defaults(usual=vars(parser.parse_args([])))


def run(args: argparse.Namespace) -> int:
    """Measures and prints; 0 also where something became slower or a contender could not run.

    1 where a whole suite broke off.

    Raises:
        ValueError, OSError, ImportError: an argument is wrong, or there are no operators.
    """
    old = None if args.compare is None else Results.load(args.compare)
    table = Table()
    whole = True
    if args.show is not None:
        results = _shown(args, table)
    else:
        results, whole = _measured(args, table)
    if old is not None:
        table.line()
        table.line(f"Compared with {args.compare}, of {old.environment.date}", "bold")
        for line in describe(compare(results, old)):
            table.line(line)
    return 0 if whole else 1


def _suite(name: str) -> str:
    if name not in SUITES:
        raise ValueError(f"there is no suite {name!r}; there are {', '.join(SUITES)}")
    return name


def _wanted(args: argparse.Namespace) -> list[str]:
    """The suites' names, each once, in the table's order."""
    return [name for name in SUITES if not args.suites or name in args.suites]


def _shown(args: argparse.Namespace, table: Table) -> Results:
    if args.json is not None:
        raise ValueError("--show measures nothing, so there is nothing for --json")
    results = Results.load(args.show)
    rows = [row for row in results if not args.suites or row.suite in args.suites]
    table.line(f"{results.environment.summary}; {results.environment.date}")
    for name in dict.fromkeys(row.suite for row in rows):
        own = [row for row in rows if row.suite == name]
        suite = load_suite(name) if name in SUITES else None  # None: of another version
        table.heading(name if suite is None else f"{name}: {suite.SUMMARY}")
        for row in own:
            _print_row(suite, row, table)
        _print_summary(suite, own, table)
    return Results(results.environment, rows)


def _measured(args: argparse.Namespace, table: Table) -> tuple[Results, bool]:
    """What was measured, and whether every suite came to its end."""
    device = _device(args.device)
    if args.json is not None:
        require_file(args.json, "--json")
    elif args.update:
        raise ValueError("--update needs --json FILE, the file to update")
    options = Options(
        device=device,
        batches=_each_once(args.batches),
        sizes=_each_once(args.sizes),
        backbones=_each_once(args.backbones),
        dtypes=None if args.dtypes is None else tuple(DTYPES[name] for name in args.dtypes),
        repeats=args.repeats,
        quick=args.quick,
        arguments=args,
    )
    suites = [load_suite(name) for name in _wanted(args)]
    for suite in suites:
        if hasattr(suite, "check"):
            suite.check(options)
    if args.freed_memory == "kept":
        keep_freed_memory()
    whole = True
    with using_threads(args.threads):
        results = Results(Environment.of(device, _command(args)))
        file = _File(args.json, results, update=args.update)
        table.line(results.environment.summary)
        try:
            for suite in suites:
                whole &= _run_suite(suite, options, results, file, table)
        finally:
            # Also what was measured until an interruption or an error.
            count = file.save()
            if count:
                table.line(f"{count} row{'s are' if count > 1 else ' is'} in {args.json}")
    return results, whole


class _File:
    """The file of the results, if any, as it grows."""

    def __init__(self, path: Path | None, results: Results, *, update: bool) -> None:
        """
        Raises:
            ValueError: there are rows to keep that were measured in another environment.
        """
        self._path = path
        self._results = results
        self._before: Results | None = None
        self._saved = time.monotonic()
        if update and path is not None and path.exists():
            self._before = Results.load(path)
            try:
                self._before.update(results)
            except ValueError as error:
                raise ValueError(f"--update {path}: {error}") from error

    def save(self) -> int:
        """How many rows are in the file; 0 where there is none."""
        if self._path is None or not len(self._results):
            return 0
        whole = self._results if self._before is None else self._before.update(self._results)
        whole.save(self._path)
        self._saved = time.monotonic()
        return len(whole)

    def save_sometimes(self) -> None:
        """Saves where the last time is some seconds ago."""
        if time.monotonic() - self._saved > _BETWEEN_SAVES:
            self.save()


def _run_suite(suite: Suite, options: Options, results: Results, file: _File, table: Table) -> bool:
    """Whether it came to its end."""
    table.heading(f"{suite.NAME}: {suite.SUMMARY}")
    rows: list[Row] = []
    broken = None
    try:
        for row in suite.measure(options):
            results.add(row)
            rows.append(row)
            _print_row(suite, row, table)
            file.save_sometimes()
    except Exception as error:  # the other suites can still be measured
        broken = Row(suite.NAME, "the rest", {}, error=one_line(error))
        results.add(broken)
        _print_row(suite, broken, table)
    if not rows and broken is None:
        table.line("With these options, nothing of this suite is measured.")
    _print_summary(suite, rows, table)
    return broken is None


def _print_row(suite: Suite | None, row: Row, table: Table) -> None:
    in_table = getattr(suite, "in_table", None)
    if in_table is None or row.error is not None or in_table(row):
        describe_row = getattr(suite, "describe", None)
        table.row(row, "" if describe_row is None else describe_row(row))


def _print_summary(suite: Suite | None, rows: Sequence[Row], table: Table) -> None:
    summarise = getattr(suite, "summarise", None)
    for line in () if summarise is None else summarise(rows):
        table.line(line)


def _device(name: str) -> torch.device:
    """
    Raises:
        ValueError: it is none, or there is none.
        ImportError: there are no operators for it.
    """
    device = pick_device(name)
    _extension.require_device(device)
    return device


def _each_once(values: Sequence[T] | None) -> tuple[T, ...] | None:
    return None if values is None else tuple(dict.fromkeys(values))


def _command(args: argparse.Namespace) -> str:
    """What was asked for, for the record; files are left out, which are nobody else's business."""
    words = ["anchornet bench", *_wanted(args)]
    for name, value in vars(args).items():
        if name in _NOT_RECORDED or name not in args.usual or value == args.usual[name]:
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words += map(_without_folder, value if isinstance(value, list) else [value])
    return " ".join(words)


def _without_folder(value: object) -> str:
    text = str(value)
    return Path(text).name if os.path.exists(text) else text

"""How the suites measure: contenders of a case take turns, and a failing one stops no other."""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from anchornet_ext.evaluation.timing import Timing, interleaved_median

from .environment import Environment
from .floors import MOVING, PRODUCT, Work, flush_caches
from .freed_memory import keep_freed_memory
from .rows import Results, Row, Setting

__all__ = [
    "Case",
    "Contenders",
    "Environment",
    "Options",
    "Results",
    "Row",
    "Setting",
    "Suite",
    "Work",
    "keep_freed_memory",
    "measure_case",
    "one_line",
]

#: Name -> the call that is timed. A call handles all images of the case's batch.
Contenders = Mapping[str, Callable[[], object]]
FLOOR = "floor"
_ALONE = "not measured, as no contender ran"


@dataclass(frozen=True)
class Options:
    """What the user asked for; None leaves the choice to the suite.

    Attributes:
        device: where to measure.
        batches, sizes: images of a batch, and pixels of their sides.
        backbones: names for `models.backbones.build_backbone`.
        dtypes: to measure in.
        repeats: rounds of every measurement.
        quick: only show that everything runs: few small cases, in seconds.
        clock: instead of the device's own; see `interleaved_median`.
        arguments: the suites' own options, by the names that their `add_arguments` gave them.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    batches: tuple[int, ...] | None = None
    sizes: tuple[int, ...] | None = None
    backbones: tuple[str, ...] | None = None
    dtypes: tuple[torch.dtype, ...] | None = None
    repeats: int | None = None
    quick: bool = False
    clock: Callable[[], float] | None = None
    arguments: argparse.Namespace = field(default_factory=argparse.Namespace)

    def rounds(self, usual: int) -> int:
        """Of a measurement: what the user said, else few where it has to be quick, else `usual`."""
        return self.repeats or (2 if self.quick else usual)


class Suite(Protocol):
    """A module that measures one subject; `suites.SUITES` lists them.

    Beside the members here it may have `add_arguments(parser)` for options of its own,
    `check(options)`, which raises ValueError where they do not fit, before anything is measured,
    `in_table(row) -> bool`, whether a row has a line of its own in the table (in the file are all),
    `describe(row) -> str`, words for the end of that line, and `summarise(rows) -> Iterable[str]`,
    lines for the end of the suite's table.
    """

    NAME: str
    SUMMARY: str

    def measure(self, options: Options) -> Iterator[Row]: ...


@dataclass(frozen=True)
class Case:
    """Contenders for the same work, measured in one run.

    Attributes:
        suite: the suite's name.
        settings: what tells this case from the suite's others.
        build: makes the contenders; called with the random generators seeded, and only when the
            case is measured, so that no two cases' inputs are in memory at once.
        batch: images that one call handles: times are given for one.
        fewer: images that a call of these contenders handles, where that is less than `batch`.
        work: for the floor; None where there is none.
        over: the contenders whose times are set in relation to every other's.
        facts: of all contenders' rows. Those of single ones: `replace` their rows.
        cold: push everything out of the caches before each call.
        sample: seconds of a warm sample, in which short calls are repeated; None makes every
            sample a single call.
        rounds: unless the user or --quick says otherwise.
        mode: the gradient mode that contenders are built and run in.
    """

    suite: str
    settings: Mapping[str, Setting]
    build: Callable[[], Contenders]
    batch: int = 1
    work: Work | None = None
    over: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    cold: bool = False
    sample: float | None = 2e-3
    rounds: int = 15
    fewer: Mapping[str, int] = field(default_factory=dict)
    mode: Callable[[], AbstractContextManager[Any]] = torch.inference_mode


class _Failure(Exception):
    """A contender's error, with its name."""

    def __init__(self, name: str, error: Exception) -> None:
        super().__init__(name)
        self.name = name
        self.message = one_line(error)


def measure_case(case: Case, options: Options) -> list[Row]:
    """The rows of `case`: one for each contender, and one for the floor where it is known.

    A contender that raises has a row that says so, and the others are measured without it.
    """
    torch.manual_seed(0)
    try:
        with case.mode():
            contenders = dict(case.build())
            times, failed = _take_turns(case, contenders, options)
    except Exception as error:  # the inputs do not fit into memory, say
        return [_row(case, "all contenders", error=one_line(error))]
    finally:
        _free(options.device)
    names = list(contenders)
    if case.work is not None:
        names.append(FLOOR)
        floor = case.work.floor(times)
        if floor is not None:
            times[FLOOR] = floor
        else:
            failed[FLOOR] = next(
                (failed[part] for part in (MOVING, PRODUCT) if part in failed), _ALONE
            )
    return [_row(case, name, times, failed.get(name)) for name in names]


def _row(
    case: Case, name: str, times: Mapping[str, Timing] | None = None, error: str | None = None
) -> Row:
    row = Row(case.suite, name, dict(case.settings), facts=dict(case.facts), error=error)
    if error is not None or times is None:
        return row
    own = times[name]
    if own.low <= 0:
        return replace(row, error="it takes no time that the clock can tell")
    others = () if name == FLOOR else (*case.over, FLOOR)
    return replace(
        row,
        time=Timing(*(seconds / case.batch for seconds in own)),
        ratios={
            other: times[other].median / own.median
            for other in others
            if other in times and other != name
        },
    )


def _take_turns(
    case: Case, contenders: Contenders, options: Options
) -> tuple[dict[str, Timing], dict[str, str]]:
    """Seconds of a batch of every contender that ran and of the floor's; and the others' errors."""
    running = dict(contenders)
    failed: dict[str, str] = {}
    if case.work is not None:
        try:
            running |= case.work.contenders(options.device)
        except Exception as error:  # no memory for it, say; the contenders may still run
            failed[MOVING] = one_line(error)
            _free(options.device)
    before = None
    if case.cold:
        before = flush_caches(options.device)
    elif case.sample is None:
        before = _nothing
    sample = case.sample or 0.0
    while not contenders.keys() <= failed.keys():
        try:
            times = interleaved_median(
                {name: _guarded(name, call) for name, call in running.items()},
                options.rounds(case.rounds),
                warmup=1 if options.quick or case.sample is None else 2,
                sample=min(sample, 2e-4) if options.quick else sample,
                before=before,
                device=options.device,
                clock=options.clock,
            )
            for name, images in case.fewer.items():
                if name in times:
                    times[name] = Timing(*(t * case.batch / images for t in times[name]))
            return times, failed
        except _Failure as failure:
            failed[failure.name] = failure.message
            del running[failure.name]
        _free(options.device)
    return {}, failed


def _guarded(name: str, call: Callable[[], object]) -> Callable[[], object]:
    def guarded() -> object:
        try:
            return call()
        except Exception as error:
            raise _Failure(name, error) from error

    return guarded


def _nothing() -> None:
    pass


def one_line(error: BaseException) -> str:
    """What went wrong, for a table."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _free(device: torch.device) -> None:
    """Gives the next case, or what is left of this one, all the memory."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()

"""What has become faster or slower since an earlier run."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .harness import FLOOR
from .rows import Results, Row


@dataclass(frozen=True)
class Change:
    """A row of both runs, timed in both.

    Attributes:
        ratio: the new time over the old; below 1 is faster.
        low, high: the ratio's spread: from the new time's lower quartile over the old time's upper
            one to the reverse.
    """

    new: Row
    ratio: float
    low: float
    high: float

    @property
    def outside(self) -> bool:
        """Whether the difference is more than the two measurements scatter."""
        return not self.low <= 1 <= self.high


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    Attributes:
        environment: in words, what differs between the machines or settings of the two.
        changes: rows that were timed in both, in the new run's order.
        now_failing, now_running: new rows of which only the old, or only the new, has a time.
        only_new, only_old: rows without a counterpart.
    """

    environment: Sequence[str]
    changes: Sequence[Change]
    now_failing: Sequence[Row]
    now_running: Sequence[Row]
    only_new: Sequence[Row]
    only_old: Sequence[Row]

    @property
    def floor(self) -> float | None:
        """Median change of the floors, which no code of this package is in: the machine's own."""
        ratios = [change.ratio for change in self.changes if change.new.name == FLOOR]
        return statistics.median(ratios) if ratios else None


def compare(new: Results, old: Results) -> Comparison:
    """Matches rows by suite, name and settings."""
    changes, failing, running = [], [], []
    for row in new:
        before = old.get(row.key)
        if before is None:
            continue
        if row.time is not None and before.time is not None:
            changes.append(_change(row, before))
        elif before.time is not None:
            failing.append(row)
        elif row.time is not None:
            running.append(row)
    return Comparison(
        environment=new.environment.differences(old.environment),
        changes=changes,
        now_failing=failing,
        now_running=running,
        only_new=[row for row in new if old.get(row.key) is None],
        only_old=[row for row in old if new.get(row.key) is None],
    )


def _change(new: Row, old: Row) -> Change:
    assert new.time is not None
    assert old.time is not None
    return Change(
        new,
        new.time.median / old.time.median,
        new.time.low / old.time.high,
        new.time.high / old.time.low,
    )


def describe(comparison: Comparison) -> Iterator[str]:
    """The comparison as lines of text."""
    if comparison.environment:
        yield "The two runs are not alike, so their times need not be:"
        yield from (f"  {difference}" for difference in comparison.environment)
    if comparison.changes:
        yield "New time over old, and its spread; * marks what is outside of the spread."
    for change in comparison.changes:
        mark = " "
        word = ""
        if change.outside:
            mark, word = "*", "faster" if change.ratio < 1 else "slower"
        row = change.new
        yield (
            f"{mark} {row.suite + ': ' + row.subject:<70} {row.name:<22} "
            f"{change.ratio:>6.3f}  {change.low:.3f} to {change.high:.3f}  {word}".rstrip()
        )
    yield from _total(comparison)
    for rows, title in (
        (comparison.now_failing, "Failing now"),
        (comparison.now_running, "Running now, failed before"),
    ):
        if rows:
            yield f"{title}:"
            yield from (f"  {row}" + (f": {row.error}" if row.error else "") for row in rows)
    compared = {change.new.suite for change in comparison.changes}
    yield from _alone(comparison.only_new, "Only in the new run", compared)
    yield from _alone(comparison.only_old, "Only in the old run", compared)


def _total(comparison: Comparison) -> Iterator[str]:
    ours = [change for change in comparison.changes if change.new.name != FLOOR]
    if not ours:
        yield "No row was timed in both runs."
        return
    slower = sum(change.outside and change.ratio > 1 for change in ours)
    faster = sum(change.outside and change.ratio < 1 for change in ours)
    rows = f"{len(ours)} row{'s' if len(ours) > 1 else ''}"
    yield f"{rows} compared: {slower} slower, {faster} faster, the rest within the spread."
    if comparison.floor is not None:
        yield (
            f"The floors, which measure the machine alone, took {comparison.floor:.3f} of their "
            "old time (median)."
        )


def _alone(rows: Sequence[Row], title: str, compared: set[str]) -> Iterator[str]:
    """Suites that only one run has are counted, single rows listed."""
    if not rows:
        return
    yield f"{title}:"
    for suite, count in Counter(row.suite for row in rows).items():
        if suite not in compared:
            yield f"  {suite}: {count} row{'s' if count > 1 else ''}"
    yield from (f"  {row}" for row in rows if row.suite in compared)

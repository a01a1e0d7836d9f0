"""What is compared: exit tables of the same images, and times of the same conditions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from anchornet_ext.evaluation.latency import LatencyReport
from anchornet_ext.evaluation.parts import TABLE
from anchornet_ext.evaluation.report_data import MeasuredTime
from anchornet_ext.evaluation.units import plural
from anchornet_ext.evaluation.wall_clock import increasing
from anchornet_ext.policy.exit_table import ExitTable

LATENCY = "latency.json"
#: What must be the same for two times to be compared. The size of the images may differ: to see
#: smaller ones is part of what a system does.
CONDITIONS = ("device", "threads", "batch size", "dtype", "torch", "clock")


@dataclass(frozen=True)
class Entry:
    """One system.

    Attributes:
        name: what it is called here; no two are called the same.
        path: of its evaluation.
        table: its exit table, the images in the order that all entries share. `milliseconds` are
            those of `times`, or None where they cannot be compared with the others'.
        times: measured time of each exit; none where there are none to compare.
        conditions: under which they were measured.
        why_untimed: why there are no times; None where there are.
    """

    name: str
    path: Path
    table: ExitTable
    times: tuple[MeasuredTime, ...] = ()
    conditions: Mapping[str, str] | None = None
    why_untimed: str | None = "the time of its exits was not measured"


def read_entry(path: Path, name: str | None = None) -> Entry:
    """The evaluation in a folder, or an exit table alone.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or does not say what its exits cost, which classes its images
            have or which images they are.
    """
    file = path / TABLE if path.is_dir() else path
    if not file.is_file():
        what = f"{path} has no {TABLE}" if path.is_dir() else f"there is no file {path}"
        raise FileNotFoundError(f"{what}; `anchornet evaluate` writes one")
    table = ExitTable.load(file, grid=False)
    for known, what in (
        (table.cost is not None, "what its exits cost"),
        (table.class_names is not None, "which classes there are"),
        (table.image_ids is not None, "which images it is of"),
        (table.label is not None, "which class each image has"),
    ):
        if not known:
            raise ValueError(f"{file} does not say {what}, so it cannot be compared")
    entry = Entry(
        name or str(table.metadata.get("system", path.name)),
        path,
        replace(table, milliseconds=None),
    )
    latency = path / LATENCY if path.is_dir() else None
    if latency is None or not latency.is_file():
        if table.milliseconds is None:
            return entry
        return replace(
            entry, why_untimed=f"its times come without their conditions (there is no {LATENCY})"
        )
    runs = LatencyReport.load(latency).runs
    timed = {} if runs is None else {time.name: time for time in runs.times if time.kind == "exit"}
    exits = [f"exit {t}" for t in range(1, table.num_exits + 1)]
    if runs is None or not all(one in timed for one in exits):
        return entry
    return with_times(entry, [timed[one] for one in exits], runs.setting)


def with_times(entry: Entry, times: Sequence[MeasuredTime], setting: Mapping[str, str]) -> Entry:
    """The entry with the measured times of its exits."""
    measured = np.array([time.milliseconds for time in times])
    return replace(
        entry,
        table=replace(entry.table, milliseconds=increasing(measured)),
        times=tuple(times),
        conditions={key: setting[key] for key in CONDITIONS if key in setting},
        why_untimed=None,
    )


def same_images(entries: Sequence[Entry], *, common: bool = False) -> list[Entry]:
    """The entries with their images in one order.

    Args:
        entries: two or more.
        common: compare on those images that all tables have, where they do not have the same.

    Raises:
        ValueError: they are of other data, classes or images; or an image has two labels. The
            message names the two and what differs.
    """
    first = entries[0]
    for entry in entries[1:]:
        _require_same_data(first, entry)
    ids = [_ids(entry) for entry in entries]
    shared = ids[0]
    for entry, own in zip(entries[1:], ids[1:], strict=True):
        if not common and not np.array_equal(np.sort(ids[0]), np.sort(own)):
            _refuse_images(first, entry, ids[0], own)
        shared = shared[np.isin(shared, own)]
    if len(shared) == 0:
        raise ValueError("the tables have no image in common")
    aligned = []
    for entry, own in zip(entries, ids, strict=True):
        order = np.argsort(own, kind="stable")
        rows = order[np.searchsorted(own, shared, sorter=order)]
        aligned.append(replace(entry, table=entry.table.subset(rows)))
    labels = aligned[0].table.label
    assert labels is not None
    for entry in aligned[1:]:
        assert entry.table.label is not None
        other = np.flatnonzero(entry.table.label != labels)
        if len(other):
            names, n = first.table.class_names or [], int(other[0])
            raise ValueError(
                f"{plural(len(other), 'image')} are of other classes in {first.path} and in "
                f"{entry.path}, {aligned[0].table.image_path(n)} for example: "
                f"{names[int(labels[n])]} and {names[int(entry.table.label[n])]}"
            )
    return aligned


def _ids(entry: Entry) -> NDArray[np.bytes_]:
    ids = entry.table.image_ids
    assert ids is not None
    if len(np.unique(ids)) != len(ids):
        raise ValueError(f"{entry.path} has an image twice")
    return ids


def _require_same_data(one: Entry, other: Entry) -> None:
    # Two folders may well have files of the same names.
    data = [entry.table.metadata.get("data") for entry in (one, other)]
    if data[0] != data[1]:
        raise ValueError(
            f"{one.path} was evaluated on {data[0]!r} and {other.path} on {data[1]!r}: only the "
            "same images can be compared"
        )
    classes = [entry.table.class_names or [] for entry in (one, other)]
    if len(classes[0]) != len(classes[1]):
        raise ValueError(
            f"{one.path} has {len(classes[0])} classes and {other.path} has {len(classes[1])}"
        )
    for n, (first, second) in enumerate(zip(*classes, strict=True)):
        if first != second:
            raise ValueError(f"class {n} is {first!r} in {one.path} and {second!r} in {other.path}")


def _refuse_images(
    one: Entry, other: Entry, first: NDArray[np.bytes_], second: NDArray[np.bytes_]
) -> None:
    missing = first[~np.isin(first, second)]
    more = second[~np.isin(second, first)]
    said = []
    for images, has, lacks in ((missing, one, other), (more, other, one)):
        if len(images):
            example = images[0].decode(errors="replace")
            said.append(
                f"{plural(len(images), 'image')} of {has.path} "
                f"{'is' if len(images) == 1 else 'are'} not in {lacks.path} ({example})"
            )
    hint = ""
    if len(missing) < len(first):
        hint = "; --common-images compares on those that all have"
    raise ValueError(f"{' and '.join(said)}{hint}")


def same_conditions(entries: Sequence[Entry]) -> list[Entry]:
    """The entries, without times where those were measured under other conditions than most."""
    known = [tuple((entry.conditions or {}).items()) for entry in entries if entry.conditions]
    if not known:
        return list(entries)
    usual = dict(Counter(known).most_common(1)[0][0])
    kept = []
    for entry in entries:
        if entry.conditions is not None and dict(entry.conditions) != usual:
            differing = [
                f"{key} {entry.conditions.get(key, 'unknown')} and not {usual.get(key, 'unknown')}"
                for key in CONDITIONS
                if entry.conditions.get(key) != usual.get(key)
            ]
            entry = replace(
                entry,
                table=replace(entry.table, milliseconds=None),
                times=(),
                why_untimed=f"it was timed under other conditions ({', '.join(differing)})",
            )
        kept.append(entry)
    return kept


def distinct_names(entries: Sequence[Entry]) -> list[Entry]:
    """The entries with names that differ: where two are called the same, the paths tell."""
    times = Counter(entry.name for entry in entries)
    renamed: list[Entry] = []
    for entry in entries:
        name = entry.name
        if times[name] > 1:
            name = f"{name}, {entry.path.name}"
        number, base = 2, name
        while name in (one.name for one in renamed):
            name, number = f"{base} {number}", number + 1
        renamed.append(replace(entry, name=name))
    return renamed

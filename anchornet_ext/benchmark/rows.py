"""What was measured: one row a contender and setting, and the file that keeps the rows."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

from anchornet_ext._files import write_whole
from anchornet_ext.evaluation.timing import Timing

from .environment import Environment

FORMAT = "anchornet_ext benchmark"
FORMAT_VERSION = 1

Setting = str | int | float | bool
#: A row's identity: rows of two files are the same measurement where these are equal.
Key = tuple[str, str, tuple[tuple[str, Setting], ...]]


@dataclass(frozen=True)
class Row:
    """One contender in one setting.

    Attributes:
        suite: the suite's name.
        name: of the contender: "ours", "reference", "floor", ...
        settings: what was worked on: operator, batch, size in pixels, dtype, layout, ... The number
            of threads and the device belong to the `Environment`.
        time: seconds for one image, median and quartiles; None where nothing was timed.
        ratios: name of something else -> its time over this one's, from one interleaved run: how
            many times faster this contender is. Of the floor: which share of what the machine
            can do is reached.
        facts: what else is known of an image: bytes, multiply-adds, peak memory, ...
        error: why there is no time, in one line.
    """

    suite: str
    name: str
    settings: Mapping[str, Setting]
    time: Timing | None = None
    ratios: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def key(self) -> Key:
        return self.suite, self.name, tuple(sorted(self.settings.items()))

    @property
    def subject(self) -> str:
        """The settings in words: "gather_patches, batch 8, size 224, float32, cold"."""
        return ", ".join(_in_words(name, value) for name, value in self.settings.items())

    def __str__(self) -> str:
        return f"{self.suite}: {self.subject}: {self.name}"

    def to_dict(self) -> dict[str, Any]:
        time = None
        if self.time is not None:
            time = {name: 1e6 * value for name, value in self.time._asdict().items()}
        return {
            "suite": self.suite,
            "name": self.name,
            "settings": dict(self.settings),
            "microseconds_per_image": time,
            "ratios": dict(self.ratios),
            "facts": dict(self.facts),
            "error": self.error,
        }

    @classmethod
    def from_dict(cls, values: Any) -> Row:
        """What `to_dict` described.

        Raises:
            ValueError: it is no such description.
        """
        try:
            settings, facts = dict(values["settings"]), dict(values["facts"])
            ratios = {name: _positive(ratio) for name, ratio in values["ratios"].items()}
            time = values["microseconds_per_image"]
            if time is not None:
                names = Timing._fields
                time = Timing(*(_positive(time[name]) / 1e6 for name in names))
            row = cls(values["suite"], values["name"], settings, time, ratios, facts)
            error = values["error"]
        except (KeyError, TypeError, AttributeError) as problem:
            raise ValueError(f"a row is not complete: {problem!r}") from problem
        if not all(isinstance(text, str) for text in (row.suite, row.name, error or "")):
            raise ValueError(f"a row's names must be text: {row.suite!r}, {row.name!r}, {error!r}")
        if not all(isinstance(value, Setting) for value in settings.values()):
            raise ValueError(f"settings must be text or numbers, got {settings!r}")
        return cls(row.suite, row.name, settings, time, ratios, facts, error)


def _in_words(name: str, value: Setting) -> str:
    if isinstance(value, bool):
        return name if value else f"no {name}"
    return value if isinstance(value, str) else f"{name} {value:g}"


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"expected a number, got {value!r}")
    if not 0 < value < math.inf:
        raise ValueError(f"expected a number above 0, got {value!r}")
    return float(value)


class Results:
    """Rows and the environment that they were measured in."""

    def __init__(self, environment: Environment, rows: Sequence[Row] = ()) -> None:
        self.environment = environment
        self._rows: dict[Key, Row] = {}
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """
        Raises:
            ValueError: there is such a row already; which of the two a comparison meant would not
                be known.
        """
        if row.key in self._rows:
            raise ValueError(f"the row {str(row)!r} is there twice")
        self._rows[row.key] = row

    def update(self, newer: Results) -> Results:
        """All rows of `newer`, after those of these that it has not, as measured by both commands.

        Raises:
            ValueError: the two were not measured in the same environment.
        """
        differences = newer.environment.differences(self.environment)
        if differences:
            raise ValueError(f"the rows do not belong together: {'; '.join(differences)}")
        commands = dict.fromkeys([*self.environment.command.split("; "), newer.environment.command])
        environment = replace(newer.environment, command="; ".join(commands))
        kept = [row for row in self if newer.get(row.key) is None]
        return Results(environment, [*kept, *newer])

    def get(self, key: Key) -> Row | None:
        return self._rows.get(key)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)

    def save(self, path: str | PathLike[str]) -> None:
        """Writes a JSON file, whole or not at all."""
        values = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "environment": self.environment.to_dict(),
            "rows": [row.to_dict() for row in self],
        }
        text = json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_whole(Path(path), text.encode())

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Results:
        """Reads what `save` wrote.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not valid; the message names the file.
        """
        content = Path(path).read_bytes()
        try:
            values = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError(f"{path} was not written by `anchornet bench`")
        version = values.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(
                f"{path} has format version {version!r}, this anchornet_ext reads {FORMAT_VERSION}"
            )
        try:
            rows = values["rows"]
            if not isinstance(rows, list):
                raise ValueError(f"rows must be a list, got {type(rows).__name__}")
            environment = Environment.from_dict(values["environment"])
            return cls(environment, [Row.from_dict(row) for row in rows])
        except KeyError as error:
            raise ValueError(f"{path} has no entry {error}") from error
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

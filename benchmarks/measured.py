"""Rows that were measured, by what they are: for the scripts that make tables of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from anchornet_ext.benchmark.environment import Environment
from anchornet_ext.benchmark.rows import FORMAT, Results, Row, Setting


class Found(NamedTuple):
    """A row and where it was measured."""

    environment: Environment
    row: Row


class Measured:
    """All rows of several files; other JSON files among them are left out."""

    def __init__(self, files: Iterable[Path]) -> None:
        self._found = [
            Found(results.environment, row)
            for results in (Results.load(f) for f in files if FORMAT in f.read_text()[:200])
            for row in results
        ]

    def rows(self, suite: str, threads: int | None = None, **settings: Setting) -> Iterator[Found]:
        """Those of a suite on the CPU that have these settings and perhaps more."""
        for found in self._found:
            if (
                found.row.suite == suite
                and found.environment.device_type == "cpu"
                and threads in (None, found.environment.threads)
                and settings.items() <= found.row.settings.items()
            ):
                yield found

    def row(
        self,
        suite: str,
        name: str,
        threads: int,
        freed_memory: str = "kept",
        **settings: Setting,
    ) -> Row | None:
        """The one with just these settings, or None.

        Raises:
            LookupError: there are several.
        """
        rows = [
            found.row
            for found in self.rows(suite, threads, **settings)
            if found.row.name == name
            and len(found.row.settings) == len(settings)
            and found.environment.freed_memory == freed_memory
        ]
        if len(rows) > 1:
            raise LookupError(f"{suite}, {name}, {threads} threads, {settings} is there twice")
        return rows[0] if rows else None

    def need(self, suite: str, name: str, threads: int, **settings: Setting) -> Row:
        """The same, and

        Raises:
            LookupError: there is none, or it failed.
        """
        row = self.row(suite, name, threads, **settings)
        if row is None or row.error is not None:
            raise LookupError(
                f"{suite}, {name}, {threads} threads, {settings} was not measured"
                f"{f': {row.error}' if row else ''}"
            )
        return row

"""Rows as lines for people, as they come."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.text import Text

from anchornet_ext.evaluation.timing import Timing
from anchornet_ext.evaluation.units import three_digits

from .rows import Row

_NAME, _TIME, _SPREAD = 24, 9, 18


class Table:
    """Prints a line for each row, below one that says what was worked on.

    Lines are not wrapped or cut: what does not fit into a terminal can still be copied whole.
    """

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._subject: str | None = None

    def heading(self, title: str) -> None:
        self.line()
        self.line(title, "bold")
        self.line(
            f"{'':<{_NAME}} {'us/image':>{_TIME}} {'quartiles':>{_SPREAD}}  times faster than",
            "dim",
        )
        self._subject = None

    def row(self, row: Row, remark: str = "") -> None:
        if row.subject != self._subject:
            self._subject = row.subject
            self.line(row.subject)
        line = Text(f"{'  ' + row.name:<{_NAME}} ")
        if row.error is not None:
            line.append(row.error, "red")
        else:
            line.append(_time_in_words(row.time))
            line.append("  " + _ratios_in_words(row.ratios), "cyan")
        if remark:
            line.append("  " + remark)
        self._console.print(line)

    def line(self, text: str = "", style: str = "") -> None:
        self._console.print(Text(text, style))


def microseconds(seconds: float) -> str:
    """Three digits at least, without a unit: "0.0123", "12.3", "12345"."""
    return three_digits(1e6 * seconds)


def _time_in_words(time: Timing | None) -> str:
    if time is None:
        return f"{'-':>{_TIME}} {'':>{_SPREAD}}"
    spread = f"{microseconds(time.low)} to {microseconds(time.high)}"
    return f"{microseconds(time.median):>{_TIME}} {spread:>{_SPREAD}}"


def _ratios_in_words(ratios: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {three_digits(ratio)}" for name, ratio in ratios.items())

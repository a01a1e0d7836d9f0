"""What a report is written from: filled in by who measured, turned into a page by `report`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from anchornet_ext.policy.exit_table import ExitTable

from .curves import BudgetedCurve, OperatingPoint
from .gallery import Gallery

TWO_STAGE_EXPLANATION = (
    "The classifier first glances at the whole picture, shrunk to a small one. If it is sure "
    "enough of its answer, it stops there. Otherwise a small helper network (AnchorNet) points at "
    "the places of the picture that matter, and the classifier looks at one small patch after the "
    "other, summing up what it has seen, until it is sure enough or has used all its looks. Each "
    "look is a step."
)
EXITS_EXPLANATION = (
    "The classifier can answer after each of several steps. After each one it knows how confident "
    "it is; if that is enough, the image leaves with the answer, and the later steps are saved."
)
PLAIN_EXPLANATION = "The network looks at the whole image once and answers."


@dataclass(frozen=True)
class PlainNetwork:
    """A network that looks at the whole image once, for comparison.

    Attributes:
        name: what it is called.
        correct: number of images it has right.
        num_images: of how many.
        macs: multiply-adds of an image; None where not known.
        milliseconds: measured time of an image; None where not measured.
    """

    name: str
    correct: int
    num_images: int
    macs: float | None = None
    milliseconds: float | None = None

    @classmethod
    def from_table(cls, name: str, table: ExitTable) -> PlainNetwork:
        """Of an exit table; of several exits, the last one."""
        return cls(
            name,
            int(table.correct[:, -1].sum()),
            table.num_images,
            None if table.cost is None else float(table.cost[-1]),
            None if table.milliseconds is None else float(table.milliseconds[-1]),
        )


@dataclass(frozen=True)
class MeasuredTime:
    """Wall-clock time of real inference: images that leave early are really not computed further.

    Attributes:
        name: "exit 3", an operating point's name, the same with ", streamed", or the plain
            network's.
        kind: what it is: "exit" (all images leave there), "point" (batch by batch), "stream" (the
            same point, with images at different steps in one batch) or "plain".
        milliseconds: of an image, the median over the repeats.
        low, high: their quartiles.
        macs: mean multiply-adds of the images timed.
        accuracy: top-1 with these settings; None where not known.
    """

    name: str
    kind: Literal["exit", "point", "stream", "plain"]
    milliseconds: float
    low: float
    high: float
    macs: float
    accuracy: float | None = None


@dataclass(frozen=True)
class Latency:
    """All times that were measured, on one machine with one setting.

    Attributes:
        times: in any order; speed-ups are against the entry of kind "plain", without one against
            the last exit.
        setting: device, threads, batch size, dtype, repeats and what is included, one fact each.
    """

    times: Sequence[MeasuredTime]
    setting: Mapping[str, str] = field(default_factory=dict)

    @property
    def reference(self) -> MeasuredTime | None:
        """What the speed-ups are against."""
        for kind in ("plain", "exit"):
            found = [time for time in self.times if time.kind == kind]
            if found:
                return max(found, key=lambda time: time.macs)
        return None


@dataclass(frozen=True)
class ReportData:
    """Everything in a report.

    Attributes:
        system: name of the system, "AnchorNet + MobileNetV2".
        data: name of the images, "Caltech-101, val".
        table: the exit table. Exit curves and reliability are computed from it.
        curves: budgeted curves (`curves.cross_fit`), each of one method and one kind of cost.
        points: chosen operating points (`curves.operating_point`).
        plain: networks to compare with.
        latency: measured wall-clock times.
        gallery: pictures of what was looked at (`gallery.make_gallery`).
        failures: one line for each image that could not be read.
        explanation: what kind of system it is, for a reader who does not know it; None says what
            the number of exits tells.
        facts: how it was measured: command, versions, machine, options. Shown as a table.
        notes: further sentences for the reader, such as why something is missing.
    """

    system: str
    data: str
    table: ExitTable
    curves: Sequence[BudgetedCurve] = ()
    points: Sequence[OperatingPoint] = ()
    plain: Sequence[PlainNetwork] = ()
    latency: Latency | None = None
    gallery: Gallery | None = None
    failures: Sequence[str] = ()
    explanation: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

"""Writes a report: one page that needs nothing but itself, and its figures as PNG files."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from pathlib import Path

from anchornet_ext._files import write_whole
from anchornet_ext.evaluation import page
from anchornet_ext.evaluation.curves import anytime
from anchornet_ext.evaluation.figure_files import FigureFiles
from anchornet_ext.evaluation.report_data import ReportData
from anchornet_ext.evaluation.theme import require_matplotlib

from .accuracy import anytime_section, cost_section, inputs_section
from .confidence import confidence_section
from .gallery import gallery_section
from .method import method_section
from .opening import header, summary, title
from .speed import speed_section
from .tables import exit_table, points_table

PAGE = "report.html"
FIGURES = "figures"
#: Every name that a figure may have, for `glob`.
_FIGURE_NAMES = (
    "accuracy_over_macs",
    "accuracy_over_milliseconds",
    "accuracy_over_inputs",
    "anytime",
    "exits",
    "speed_up",
    "reliability",
    "gallery_exit_*",
)


def write_report(folder: str | PathLike[str], data: ReportData) -> Path:
    """Writes `report.html` and `figures/*.png` into `folder`, which is made if need be.

    Every file is written whole; the page comes last, so that a page always has its figures. PNG
    files in `figures` that belong to no figure of this report are left alone, but those that an
    earlier report may have left under one of its names are removed.

    Returns:
        The page's path.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the folder cannot be written to.
    """
    require_matplotlib()
    folder = Path(folder)
    files = FigureFiles(folder / FIGURES, _FIGURE_NAMES)
    data = _completed(data)
    exits = anytime(data.table, data.system)
    main = next((curve for curve in data.curves if curve.costs == "macs"), None)
    main = main or next(iter(data.curves), None)
    sections = [
        header(data, exits),
        summary(data, exits, main),
        exit_table(data, exits),
        points_table(data, exits),
        cost_section(data, exits, files),
        anytime_section(exits, files),
        inputs_section(data, main, files),
        speed_section(data, files),
        confidence_section(data, files),
        gallery_section(data.gallery, files),
        method_section(data, main),
    ]
    content = page.document(title(data), [part for part in sections if part])
    files.remove_others()
    # Names of files need not be text.
    write_whole(folder / PAGE, content.encode(errors="backslashreplace"))
    return folder / PAGE


def _completed(data: ReportData) -> ReportData:
    """The same with one name for the system, and with times of plain networks where known."""
    times = () if data.latency is None else data.latency.times
    timed = {time.name: time.milliseconds for time in times if time.kind == "plain"}
    return replace(
        data,
        # Its lines and its points belong together, whatever the curves were called.
        curves=[replace(curve, system=data.system) for curve in data.curves],
        plain=[
            replace(one, milliseconds=timed.get(one.name, one.milliseconds)) for one in data.plain
        ],
    )

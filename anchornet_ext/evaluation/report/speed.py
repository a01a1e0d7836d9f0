"""The section of a report on measured times."""

from __future__ import annotations

from anchornet_ext.evaluation import figures, page, sentences
from anchornet_ext.evaluation.figure_files import FigureFiles
from anchornet_ext.evaluation.report_data import ReportData
from anchornet_ext.evaluation.units import macs, milliseconds, three_digits


def speed_section(data: ReportData, files: FigureFiles) -> str:
    """Times against multiply-adds; "" unless there are two to compare."""
    latency = data.latency
    if latency is None or latency.reference is None or len(latency.times) < 2:
        return ""
    reference = latency.reference
    said = sentences.about_speed(latency)
    caption = f"Speed-up over {reference.name}: expected from the multiply-adds, and measured."
    header = ["", "ms an image", "quartiles", "multiply-adds", "speed-up expected", "measured",
              "realised"]  # fmt: skip
    rows = []
    for time in sorted(latency.times, key=lambda one: one.macs):
        expected, measured = sentences.speedups(time, reference)
        ends = f"{three_digits(time.low)} to {three_digits(time.high)}"
        cells = [time.name, milliseconds(time.milliseconds), ends, macs(time.macs)]
        if time is reference:
            cells += ["1", "1", ""]
        else:
            part = f"{100 * measured / expected:.0f} %"
            cells += [f"{expected:.2f}", f"{measured:.2f}", part]
        rows.append(cells)
    return page.section(
        "Speed on the clock",
        page.bullets(said),
        files.figure(
            "speed_up",
            lambda theme: figures.draw_speedups(latency.times, reference, theme=theme),
            f"{caption} {' '.join(said)}",
            caption,
        ),
        page.data_table(header, rows),
        page.facts(latency.setting) if latency.setting else "",
    )

"""The tables of a report: every exit, and every operating point."""

from __future__ import annotations

from anchornet_ext.evaluation import figures, page, sentences
from anchornet_ext.evaluation.curves import AnytimeCurve
from anchornet_ext.evaluation.intervals import share
from anchornet_ext.evaluation.report_data import ReportData
from anchornet_ext.evaluation.units import percent, scale_of, three_digits


def exit_table(data: ReportData, exits: AnytimeCurve) -> str:
    """What the system achieves when all images leave at the same exit."""
    count = exits.num_images
    header = ["", "top-1"]
    if exits.top5 is not None:
        header.append("top-5")
    scale = scale_of([*(exits.macs if exits.macs is not None else ()),
                      *(one.macs for one in data.plain if one.macs is not None)])  # fmt: skip
    timed = {time.name: time.milliseconds for time in data.latency.times} if data.latency else {}
    times = [timed.get(f"exit {step + 1}") for step in range(exits.num_exits)]
    if exits.milliseconds is not None:
        times = [float(value) for value in exits.milliseconds]
    plain_times = [one.milliseconds for one in data.plain]
    with_macs = exits.macs is not None or any(one.macs is not None for one in data.plain)
    with_times = any(time is not None for time in [*times, *plain_times])
    if with_macs:
        header.append(scale.macs)
    if with_times:
        header.append("ms an image")

    def row(
        name: str,
        top1: tuple[str, str],
        top5: str,
        cost: float | None,
        time: float | None,
    ) -> list[str | tuple[str, str]]:
        cells: list[str | tuple[str, str]] = [name, top1]
        if exits.top5 is not None:
            cells.append(top5)
        if with_macs:
            cells.append("" if cost is None else three_digits(cost / scale.factor))
        if with_times:
            cells.append("" if time is None else three_digits(time))
        return cells

    rows = []
    for step in range(exits.num_exits):
        top1 = exits.top1[step]
        rows.append(
            row(
                f"exit {step + 1}",
                (percent(float(top1.value), count), sentences.interval_in_words(top1, count)),
                "" if exits.top5 is None else percent(float(exits.top5.value[step]), count),
                None if exits.macs is None else float(exits.macs[step]),
                times[step],
            )
        )
    for network, time in zip(data.plain, plain_times, strict=True):
        found = share(network.correct, network.num_images)
        interval = sentences.interval_in_words(found, network.num_images)
        accuracy = percent(float(found.value), network.num_images)
        name = f"{network.name} (whole image)"
        rows.append(row(name, (accuracy, interval), "", network.macs, time))
    return page.section(
        "At every exit",
        page.paragraph(
            "What the system achieves when all images leave at the same exit. The smaller numbers "
            "are 95 % intervals."
        ),
        page.data_table(header, rows),
    )


def points_table(data: ReportData, exits: AnytimeCurve) -> str:
    """The operating points, with where their images left; "" without any."""
    if not data.points:
        return ""
    count = exits.num_images
    timed = {}
    if data.latency is not None:
        timed = {time.name: time for time in data.latency.times if time.kind == "point"}
    with_top5 = any(point.top5 is not None for point in data.points)
    full = None if exits.macs is None else float(exits.macs[-1])
    scale = scale_of([] if exits.macs is None else exits.macs)
    header = ["operating point", "top-1"]
    header += ["top-5"] if with_top5 else []
    header += [] if full is None else [f"mean {scale.macs}"]
    header += ["ms an image"] if timed else []
    header += ["steps", "fitted on"]
    rows = []
    for letter, point in figures.lettered(data.points):
        policy = point.policy
        about = f"thresholds: {sentences.thresholds_in_words(policy.thresholds)}"
        if policy.temperatures is not None:
            about += f"; temperatures: {', '.join(f'{value:.3g}' for value in policy.temperatures)}"
        if policy.answer != "last":
            about += f"; answer: the {policy.answer} step"
        cells: list[str | tuple[str, str]] = [
            (f"{letter}: {point.name}", about),
            (
                percent(float(point.accuracy.value), count),
                sentences.interval_in_words(point.accuracy, count),
            ),
        ]
        if with_top5:
            cells.append("" if point.top5 is None else percent(point.top5, count))
        part = ""
        if full is not None and point.macs is not None:
            part = f"{100 * point.macs / full:.0f} % of all"
        if full is not None:
            cost = "" if point.macs is None else three_digits(point.macs / scale.factor)
            cells.append((cost, part))
        if timed:
            time = timed.get(point.name)
            cells.append("" if time is None else three_digits(time.milliseconds))
        left = ", ".join(f"{100 * part:.0f}" for part in point.share)
        cells += [(f"{point.inputs:.2f}", f"left at: {left} %"), sentences.held_out_in_words(point)]
        rows.append(cells)
    return page.section(
        "Operating points",
        page.bullets(sentences.about_points(data.points, exits)),
        page.data_table(header, rows),
        page.paragraph(
            "“Steps” is the mean number of steps; below it, the share of the images that left at "
            "exit 1, 2, and so on.",
            "faint",
        ),
    )

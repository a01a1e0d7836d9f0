"""Writes a report: one page that needs nothing but itself, and its figures as PNG files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from html import escape
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from anchornet_ext._files import write_whole

from . import figures, page, sentences
from .curves import AnytimeCurve, BudgetedCurve, Costs, anytime, why_no_curve
from .gallery import Gallery, draw_card, draw_sheet
from .intervals import share
from .reliability import Reliability, reliability
from .report_data import EXITS_EXPLANATION, PLAIN_EXPLANATION, ReportData
from .theme import DARK, LIGHT, PNG_DPI, SCREEN_DPI, Theme, png, require_matplotlib
from .units import macs, milliseconds, percent, plural, scale_of, three_digits, whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "report.html"
FIGURES = "figures"
#: Pixels of a gallery card for one of the page's.
_CARD_SCALE = 4 / 3
_SHOWN_FAILURES = 20

_WORDS = {
    "step, exit": "The system looks at an image in steps. After each one there is an exit, where "
    "the image can leave with an answer.",
    "multiply-adds (MACs)": "How much a network computes: one multiplication and one addition. "
    "1 GMACs is a thousand million of them. It does not depend on the machine.",
    "confidence": "The probability that the system gives its own answer, 0 to 100 %.",
    "threshold": "An image leaves at the first exit where its confidence is above that exit's "
    "threshold. Higher thresholds keep more images for the later steps, which costs more.",
    "top-1, top-5": "The share of images whose right class is the answer, or is among the five "
    "classes that the system finds most probable.",
    "anytime prediction": "Every image leaves at the same exit.",
    "budget": "The mean cost that images may have. Easy images may cost less so that hard ones can "
    "cost more.",
    "expected number of steps, E(t)": "How many steps an image takes on average.",
    "95 % interval": "The range that holds the true value in 95 of 100 such measurements on "
    "other images of the same kind.",
}


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
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    writer = _Writer(folder / FIGURES)
    data = _completed(data)
    exits = anytime(data.table, data.system)
    main = next((curve for curve in data.curves if curve.costs == "macs"), None)
    main = main or next(iter(data.curves), None)
    sections = [
        _header(data, exits),
        _summary(data, exits, main),
        _exit_table(data, exits),
        _points_table(data, exits),
        _cost_section(data, exits, writer),
        _anytime_section(exits, writer),
        _inputs_section(data, main, writer),
        _speed_section(data, writer),
        _reliability_section(data, writer),
        _gallery_section(data.gallery, writer),
        _method_section(data, main),
    ]
    content = page.document(_title(data), [part for part in sections if part])
    writer.remove_others()
    # Names of files need not be text.
    write_whole(folder / PAGE, content.encode(errors="backslashreplace"))
    return folder / PAGE


class _Writer:
    """Puts figures into the folder and into the page."""

    #: Every name that a report may give to a figure.
    NAMES = (
        "accuracy_over_macs",
        "accuracy_over_milliseconds",
        "accuracy_over_inputs",
        "anytime",
        "exits",
        "speed_up",
        "reliability",
    )

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written: set[str] = set()

    def figure(
        self, name: str, draw: Callable[[Theme], Figure], words: str, caption: str = ""
    ) -> str:
        """Draws in both schemes, writes the light one, and returns the HTML of both."""
        light, dark = png(draw(LIGHT)), png(draw(DARK))
        self._write(name, light)
        with Image.open(BytesIO(light)) as picture:
            width, height = picture.size
        scale = SCREEN_DPI / PNG_DPI
        size = round(width * scale), round(height * scale)
        return page.figure(light, dark, size, words, caption)

    def sheet(self, name: str, picture: Image.Image) -> None:
        """Writes a picture that is not in the page as it is."""
        buffer = BytesIO()
        picture.save(buffer, format="PNG")
        self._write(name, buffer.getvalue())

    def remove_others(self) -> None:
        """Removes figures of an earlier report that this one does not have."""
        for path in [*self._folder.glob("gallery_exit_*.png"),
                     *(self._folder / f"{name}.png" for name in self.NAMES)]:  # fmt: skip
            if path.name not in self._written:
                path.unlink(missing_ok=True)

    def _write(self, name: str, content: bytes) -> None:
        file = f"{name}.png"
        write_whole(self._folder / file, content)
        self._written.add(file)


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


def _title(data: ReportData) -> str:
    return f"{data.system} on {data.data}"


def _header(data: ReportData, exits: AnytimeCurve) -> str:
    count, last = exits.num_images, float(exits.top1.value[-1])
    explanation = data.explanation
    if explanation is None:
        explanation = EXITS_EXPLANATION if exits.num_exits > 1 else PLAIN_EXPLANATION
    key = [
        (whole(count), "images" if count != 1 else "image"),
        (str(exits.num_exits), "exits" if exits.num_exits != 1 else "exit"),
    ]
    if exits.num_exits > 1:
        key.append((percent(float(exits.top1.value[0]), count), "right after the first step"))
    several = exits.num_exits > 1
    key.append((percent(last, count), "right after all steps" if several else "right"))
    if exits.top5 is not None:
        key.append((percent(float(exits.top5.value[-1]), count), "among the first five"))
    if exits.macs is not None:
        key.append((macs(float(exits.macs[-1])), "for all steps" if several else "an image"))
    if data.failures:
        key.append((whole(len(data.failures)), "could not be read"))
    return (
        f"<header><h1>{escape(_title(data))}</h1>\n"
        f"{page.paragraph(explanation)}\n{page.key_figures(key)}</header>"
    )


def _summary(data: ReportData, exits: AnytimeCurve, main: BudgetedCurve | None) -> str:
    said = sentences.about_result(exits, main, data.plain, data.latency)
    failures = ""
    if data.failures:
        said.append(
            f"{plural(len(data.failures), 'image')} could not be read and "
            f"{'is' if len(data.failures) == 1 else 'are'} in no figure here."
        )
        shown = list(data.failures[:_SHOWN_FAILURES])
        if len(data.failures) > _SHOWN_FAILURES:
            shown.append(f"and {whole(len(data.failures) - _SHOWN_FAILURES)} more")
        failures = page.folded("Images that could not be read", page.bullets(shown))
    return page.section("In short", page.bullets([*said, *data.notes]), failures)


def _exit_table(data: ReportData, exits: AnytimeCurve) -> str:
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


def _points_table(data: ReportData, exits: AnytimeCurve) -> str:
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


def _cost_section(data: ReportData, exits: AnytimeCurve, writer: _Writer) -> str:
    parts: list[str] = []
    times = () if data.latency is None else data.latency.times
    kinds: tuple[tuple[Costs, str, str], ...] = (
        ("macs", "accuracy_over_macs", "multiply-adds"),
        ("milliseconds", "accuracy_over_milliseconds", "milliseconds"),
        ("inputs", "accuracy_over_inputs", "steps"),
    )
    for costs, name, words in kinds:
        curves = [curve for curve in data.curves if curve.costs == costs]
        known = exits.macs if costs == "macs" else exits.milliseconds
        if not curves and (known is None or costs == "inputs"):
            continue
        said = sentences.about_methods(curves)
        if curves:
            said.insert(0, sentences.about_saving(exits, curves[0]))
        if costs == "macs":
            said.extend(sentences.about_plain(one, exits, next(iter(curves), None))
                        for one in data.plain)  # fmt: skip
            why = why_no_curve(data.table, "macs")
            if not curves and why is not None and exits.num_exits > 1:
                said.append(f"There is no curve: {why}.")
        if costs == "milliseconds":
            said.extend(sentences.about_added_times(exits, data.points, data.latency))
        said.extend(sentences.about_cross_fit(curve) for curve in curves[:1])

        def draw(theme: Theme, costs: Costs = costs) -> Figure:
            return figures.draw_accuracy_over_cost(
                data.curves, [exits], data.plain, data.points, times, costs=costs, theme=theme
            )

        caption = f"Top-1 accuracy over the mean {words} of an image."
        if exits.num_exits > 1:
            caption += (
                " Numbered circles: every image leaves at that exit. Lines: images leave when they "
                "are sure enough. Further up and further left is better."
            )
        if parts:
            parts.append(page.heading(f"In {words}"))
        parts += [
            page.bullets(said),
            writer.figure(name, draw, f"{caption} {' '.join(said)}", caption),
        ]
    if not parts and exits.num_exits == 1:
        return ""
    if not parts:
        why = why_no_curve(data.table, "macs") or "no curve was computed"
        parts = [page.paragraph(f"Not drawn: {why}.")]
    return page.section("Accuracy for a cost", *parts)


def _anytime_section(exits: AnytimeCurve, writer: _Writer) -> str:
    if exits.num_exits == 1:
        return ""
    said = sentences.about_anytime(exits)
    caption = "Accuracy when every image takes the same number of steps, with 95 % intervals."
    return page.section(
        "What each step adds",
        page.sentences(said),
        writer.figure(
            "anytime",
            lambda theme: figures.draw_anytime([exits], theme=theme),
            f"{caption} {' '.join(said)}",
            caption,
        ),
    )


def _inputs_section(data: ReportData, main: BudgetedCurve | None, writer: _Writer) -> str:
    if main is None:
        return ""
    chosen = figures.sample_points(main, 4)
    said = sentences.about_inputs(main, chosen)
    caption = (
        "Top-1 accuracy over the mean number of steps; above, how many images left at each step at "
        "the marked points."
    )
    others = [curve for curve in data.curves if curve is not main and curve.costs == main.costs]
    return page.section(
        "How many steps images take",
        page.paragraph(
            "With higher thresholds images must be surer to leave, so more of them take the later "
            "steps."
        ),
        page.sentences(said),
        writer.figure(
            "exits",
            lambda theme: figures.draw_expected_inputs(main, others=others, theme=theme),
            f"{caption} {' '.join(said)}",
            caption,
        ),
    )


def _speed_section(data: ReportData, writer: _Writer) -> str:
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
        writer.figure(
            "speed_up",
            lambda theme: figures.draw_speedups(latency.times, reference, theme=theme),
            f"{caption} {' '.join(said)}",
            caption,
        ),
        page.data_table(header, rows),
        page.facts(latency.setting) if latency.setting else "",
    )


def _reliability_section(data: ReportData, writer: _Writer) -> str:
    table = data.table
    exits: list[Reliability] = [
        reliability(table.confidence[:, step], table.correct[:, step], step + 1)
        for step in range(table.num_exits)
    ]
    said = sentences.about_reliability(exits)
    caption = (
        "Of the images with a given confidence, how many are right (line, with 95 % intervals); on "
        "the dashed diagonal confidences are exact, below it the system is too sure. Grey: how "
        "many images have that confidence."
    )
    leaving = (
        "Whether an image leaves is decided by its confidence. Thresholds are fitted, so they "
        "make up for confidences that are wrong by the same amount for all images; but a "
        "number such as 0.9 means 90 % only where the line lies on the diagonal."
    )
    return page.section(
        "Can the confidence be trusted?",
        page.paragraph(leaving) if len(exits) > 1 else "",
        page.bullets(said),
        writer.figure(
            "reliability",
            lambda theme: figures.draw_reliability(exits, theme=theme),
            f"{caption} {' '.join(said)}",
            caption,
        ),
    )


def _gallery_section(gallery: Gallery | None, writer: _Writer) -> str:
    if gallery is None or not gallery.items:
        return ""
    said = sentences.about_gallery(gallery)
    parts = [
        page.paragraph(
            "Images chosen at random from those that left after each step, right and wrong ones in "
            "separate rows; so the pictures do not show how many of them are right. Each shows "
            "the whole picture with the patches that were looked at, then every look: what was "
            "seen, the class that led after it, and how sure the system was."
        ),
        page.paragraph(
            f"Thresholds: {sentences.thresholds_in_words(gallery.policy.thresholds)}.", "faint"
        ),
    ]
    for step, words in enumerate(said, start=1):
        parts += [page.heading(f"Left after step {step}"), page.paragraph(words)]
        cards: list[Image.Image] = []
        for correct in (True, False):
            items = gallery.at(step, correct=correct)
            drawn = [draw_card(item) for item in items]
            cards += drawn
            if items:
                parts.append(
                    page.cards(
                        [
                            (_jpeg(card), _css_size(card), item.in_words())
                            for card, item in zip(drawn, items, strict=True)
                        ]
                    )
                )
        if cards:
            writer.sheet(f"gallery_exit_{step}", draw_sheet(cards, f"Step {step}: {words}"))
    if gallery.problems:
        parts.append(
            page.folded(
                "Images that were chosen but could not be shown", page.bullets(gallery.problems)
            )
        )
    return page.section("What was looked at", *parts)


def _method_section(data: ReportData, main: BudgetedCurve | None) -> str:
    facts = {"system": data.system, "images": f"{data.data} ({whole(data.table.num_images)})"}
    if main is not None:
        facts["thresholds of the curves"] = sentences.about_cross_fit(main)
        facts["seed"] = str(main.seed)
    facts["intervals"] = (
        "95 %: Wilson score intervals for accuracies, normal intervals of paired differences "
        "for comparisons on the same images"
    )
    facts.update(data.facts)
    return page.section(
        "How this was measured",
        page.facts(facts),
        page.heading("Words"),
        page.definitions(_WORDS),
    )


def _jpeg(picture: Image.Image) -> bytes:
    # Photos as PNG would make the page several times as large.
    buffer = BytesIO()
    picture.save(buffer, format="JPEG", quality=88, optimize=True)
    return buffer.getvalue()


def _css_size(picture: Image.Image) -> tuple[int, int]:
    return round(picture.width / _CARD_SCALE), round(picture.height / _CARD_SCALE)

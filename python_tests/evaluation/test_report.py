"""The page needs nothing but itself, shows what was measured, and escapes what others wrote."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_cases import graded_table

from anchornet_ext.evaluation.curves import cross_fit, operating_point
from anchornet_ext.evaluation.gallery import Gallery, GalleryItem
from anchornet_ext.evaluation.report import write_report
from anchornet_ext.evaluation.report_data import Latency, MeasuredTime, PlainNetwork, ReportData
from anchornet_ext.inference.overlay import Look
from anchornet_ext.policy.exit_policy import ExitPolicy

VOID = {"meta", "img", "source", "br"}
HOSTILE = '<script>alert("1")</script> & $x_1'


@dataclass
class Page(HTMLParser):
    """What a browser would find in a page."""

    text: str = ""
    tags: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    pictures: list[dict[str, str | None]] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    headings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        values = dict(attributes)
        self.addresses += [
            values[name] or "" for name in ("src", "srcset", "href", "action") if name in values
        ]
        if tag == "img":
            self.pictures.append(values)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("h2", "h3"):
            self.headings.append(data)
        if "style" not in self.open:
            self.text += data


def read_page(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert page.open == []
    return page


def one_item(correct: bool, step: int) -> GalleryItem:
    looks = [Look(HOSTILE, 0.4)] + [Look("dog", 0.9, (0, 0, 95, 95))] * (step - 1)
    crop = np.random.default_rng(0).integers(0, 255, (112, 112, 3), np.uint8)
    return GalleryItem(f"{HOSTILE}.png", crop, tuple(looks), 3, 95, step, "cat", correct)


def full_data() -> ReportData:
    """A report with everything in it, in which names are hostile."""
    table = graded_table(200, 3, milliseconds=np.array([1.0, 2.5, 3.0]))
    curves = [cross_fit(table, method, num_points=5) for method in ("search", "geometric")]
    curves.append(cross_fit(table, costs="milliseconds", num_points=5))
    policy = ExitPolicy((0.6, -1.0))
    points = [operating_point(table, f"{HOSTILE} point", policy, held_out=False)]
    assert points[0].macs is not None
    times = [
        MeasuredTime("whole", "plain", 8.0, 7.9, 8.1, 4e9),
        MeasuredTime(points[0].name, "point", 2.0, 1.9, 2.2, points[0].macs),
    ]
    return ReportData(
        system=f"{HOSTILE} system",
        data="the images",
        table=table,
        curves=curves,
        points=points,
        plain=[PlainNetwork("whole", 150, 200, 4e9)],
        latency=Latency(times, {"device": HOSTILE}),
        gallery=Gallery(
            (one_item(True, 1), one_item(False, 2)),
            policy,
            np.array([[90, 30], [20, 60], [0, 0]]),
            ("dog/3.png is empty",),
        ),
        failures=[f"{HOSTILE}/{number}.png: broken" for number in range(25)],
        facts={"command": f"anchornet evaluate --data {HOSTILE}"},
        notes=["A note."],
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    """A full report. Not to be changed."""
    folder = tmp_path_factory.mktemp("report")
    path = write_report(folder, full_data())
    assert path.parent == folder
    return folder, read_page(path)


def test_the_page_loads_nothing(written: tuple[Path, Page]) -> None:
    folder, page = written
    assert page.addresses
    assert all(address.startswith("data:image/") for address in page.addresses)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert "default-src 'none'" in (folder / "report.html").read_text()
    assert "url(" not in (folder / "report.html").read_text()


def test_what_others_wrote_is_shown_as_text(written: tuple[Path, Page]) -> None:
    _, page = written
    for suffix in (" system on the images", " point", "/0.png: broken"):
        assert HOSTILE + suffix in page.text
    assert any(HOSTILE in (picture["alt"] or "") for picture in page.pictures)


def test_every_section_is_there(written: tuple[Path, Page]) -> None:
    _, page = written
    assert [words for words in page.headings if "step 1" not in words] == [
        "In short",
        "At every exit",
        "Operating points",
        "Accuracy for a cost",
        "In milliseconds",
        "What each step adds",
        "How many steps images take",
        "Speed on the clock",
        "Can the confidence be trusted?",
        "What was looked at",
        "Left after step 2",
        "Left after step 3",
        "How this was measured",
        "Words",
    ]


def test_the_numbers_are_those_of_the_table(written: tuple[Path, Page]) -> None:
    _, page = written
    table = graded_table(200, 3)
    for step in range(3):
        assert f"{100 * table.correct[:, step].mean():.1f} %" in page.text
    assert "1.75" in page.text  # GMACs of exit 2
    assert "25 images could not be read and are in no figure here." in page.text
    assert "and 5 more" in page.text
    assert "A note." in page.text
    assert "thresholds: 0.600, always" in page.text
    assert "same images" in page.text
    assert "120 images left after step 1; 75 % of them were classified right." in page.text
    assert "No image left after step 3." in page.text
    assert "dog/3.png is empty" in page.text
    assert "4.00 times as fast" in page.text


def test_pictures_have_words_and_are_files_too(written: tuple[Path, Page]) -> None:
    folder, page = written
    assert all(len(picture["alt"] or "") > 20 for picture in page.pictures)
    files = {path.stem: path.read_bytes() for path in (folder / "figures").glob("*.png")}
    assert set(files) == {
        "accuracy_over_macs",
        "accuracy_over_milliseconds",
        "anytime",
        "exits",
        "speed_up",
        "reliability",
        "gallery_exit_1",
        "gallery_exit_2",
    }
    embedded = [
        base64.b64decode((picture["src"] or "").partition(",")[2]) for picture in page.pictures
    ]
    for name, content in files.items():
        assert Image.open(BytesIO(content)).format == "PNG"
        if not name.startswith("gallery"):
            assert content in embedded
    # Each figure has a second picture for dark pages; the gallery's cards are photos, and as such
    # the same on both.
    assert page.tags.count("source") == 6
    assert len(page.pictures) == 6 + 2


def test_a_second_report_is_the_same_and_leaves_nothing_of_the_first(
    tmp_path: Path,
) -> None:
    def small(**changes: Any) -> ReportData:
        return ReportData("system", "images", graded_table(30, 1), **changes)

    figures = tmp_path / "figures"
    figures.mkdir()
    for name in ("gallery_exit_7.png", "exits.png", "mine.png"):
        (figures / name).write_bytes(b"old")
    first = write_report(tmp_path, small()).read_bytes()
    assert sorted(path.name for path in figures.iterdir()) == [
        "accuracy_over_macs.png",
        "mine.png",
        "reliability.png",
    ]
    assert write_report(tmp_path, small()).read_bytes() == first


@pytest.mark.parametrize(
    ("images", "exits", "cost"), [(1, 1, False), (1, 4, True), (45, 2, True), (30, 11, False)]
)
def test_tables_of_every_size_have_a_report(
    images: int, exits: int, cost: bool, tmp_path: Path
) -> None:
    table = graded_table(images, exits, **({} if cost else {"cost": None, "top5": None}))
    page = read_page(write_report(tmp_path, ReportData("it", "images", table)))
    assert "At every exit" in page.headings
    assert "nan" not in page.text.lower().replace("names", "")
    if exits == 1:
        assert "looks at the whole image once" in page.text
        assert "Accuracy for a cost" not in page.headings
    elif not cost:
        assert "Not drawn: thresholds are fitted on one half" in page.text


def test_without_matplotlib_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'anchornet_ext\[report\]'"):
        write_report(tmp_path / "out", ReportData("it", "images", graded_table(30, 2)))
    assert not (tmp_path / "out").exists()

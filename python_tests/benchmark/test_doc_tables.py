"""The tables of the pages are those of the measured files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmark_scripts import BENCHMARKS, load_script

from anchornet_ext.benchmark.environment import Environment
from anchornet_ext.benchmark.rows import Results, Row
from anchornet_ext.evaluation.timing import Timing

REPOSITORY = BENCHMARKS.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
doc_tables = load_script("doc_tables")
Measured = doc_tables.Measured

PAGE = "before\n<!-- table exits threads=1 batch=32 quartiles=no -->\nold\n<!-- end of table -->\n"


def test_no_figure_of_a_table_differs_from_what_was_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status = doc_tables.main(["--check", *map(str, PAGES)])
    assert status == 0, capsys.readouterr().err


def test_a_page_that_differs_is_said_and_then_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doc_tables, "RESULTS", a_file(tmp_path).parent)
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert doc_tables.main(["--check", str(page)]) == 1
    assert str(page) in capsys.readouterr().err
    assert page.read_text() == PAGE
    assert doc_tables.main([str(page)]) == 0
    assert "5.43 / 5.27 = 97 %" in page.read_text()
    assert doc_tables.main(["--check", str(page)]) == 0


def a_file(folder: Path, share: float = 0.97, threads: int = 1, name: str = "one.json") -> Path:
    settings = {"backbone": "resnet50", "size": 224, "dtype": "float32", "batch": 32}
    facts = {"theoretical": 5.43, "realised": 5.43 * share, "share": share}
    row = Row("end_to_end", "exit 1", settings, Timing(2.0, 1.6, 2.5), {}, facts)
    of_this = Environment.of(torch.device("cpu"), "anchornet bench end_to_end")
    where = {"threads": threads, "freed_memory": "kept"}
    environment = Environment.from_dict({**of_this.to_dict(), **where})
    path = folder / name
    Results(environment, [row]).save(path)
    return path


def test_a_table_is_filled_and_the_rest_stays(tmp_path: Path) -> None:
    measured = Measured([a_file(tmp_path)])
    text = doc_tables.filled(PAGE + "after\n", measured)
    assert text.startswith("before\n<!-- table exits threads=1 batch=32 quartiles=no -->\n")
    assert text.endswith("<!-- end of table -->\nafter\n")
    assert "| ResNet-50 | 5.43 / 5.27 = 97 % |  |" in text
    assert "old" not in text
    assert doc_tables.filled(text, measured) == text
    with_quartiles = doc_tables.filled(text.replace(" quartiles=no", ""), measured)
    assert "| quartiles, % | 78 to 121 |" in with_quartiles  # 0.97 * 2 / 2.5, 0.97 * 2 / 1.6


def test_rows_of_other_threads_are_not_in_it(tmp_path: Path) -> None:
    measured = Measured([a_file(tmp_path, threads=2)])
    assert "5.43" not in doc_tables.filled(PAGE, measured)


def test_a_table_of_another_machine_is_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_file(tmp_path)
    (tmp_path / "slow").mkdir()
    a_file(tmp_path / "slow", share=0.5)
    monkeypatch.setattr(doc_tables, "RESULTS", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(PAGE.replace("batch=32", "batch=32 machine=slow") + PAGE)
    assert doc_tables.main([str(page)]) == 0
    slow, usual = page.read_text().split("before\n")[1:]
    assert "= 50 %" in slow
    assert "= 97 %" in usual


def test_a_row_in_two_files_is_refused(tmp_path: Path) -> None:
    measured = Measured([a_file(tmp_path), a_file(tmp_path, 0.5, name="two.json")])
    with pytest.raises(LookupError, match="is there twice"):
        doc_tables.filled(PAGE, measured)


@pytest.mark.parametrize(
    ("page", "said"),
    [
        (PAGE.replace("exits", "entrances"), "no table 'entrances'"),
        (PAGE.replace("<!-- end of table -->", ""), "1 tables begin, but 0 end"),
        (PAGE.replace("batch=32", "batch=32 machine=moon"), "no machine 'moon'"),
    ],
)
def test_what_is_wrong_with_a_page_is_said(page: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        doc_tables.filled(page, Measured([a_file(tmp_path)]))


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    page = PAGE.replace("exits threads=1 batch=32 quartiles=no", "localisation threads=1")
    with pytest.raises(LookupError, match=r"localisation, plain, 1 threads.* was not measured"):
        doc_tables.filled(page, Measured([a_file(tmp_path)]))

"""The file that keeps rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchornet_ext.benchmark.environment import Environment
from anchornet_ext.benchmark.rows import Results, Row
from anchornet_ext.evaluation.timing import Timing

HERE = Environment.of(torch.device("cpu"), "anchornet bench operators")
ROW = Row(
    "operators",
    "ours",
    {"operator": "gather", "batch": 8, "size": 224.5, "cold": True},
    Timing(3e-6, 2e-6, 4e-6),
    {"floor": 0.5},
    {"looks": {"glance": 3}, "left": [1, 2]},
)

positive = st.floats(1e-12, 1e6)
rows = st.builds(
    Row,
    suite=st.text(),
    name=st.text(),
    settings=st.dictionaries(
        st.text(), st.text() | st.integers() | st.booleans() | st.floats(allow_nan=False)
    ).filter(
        lambda found: all(abs(v) != float("inf") for v in found.values() if isinstance(v, float))
    ),
    time=st.none() | st.builds(Timing, positive, positive, positive),
    ratios=st.dictionaries(st.text(), positive),
    error=st.none() | st.text(),
)


@given(found=st.lists(rows, unique_by=lambda row: row.key, max_size=4))
@settings(max_examples=25, deadline=None)
def test_what_was_saved_is_loaded(found: list[Row], tmp_path_factory: Any) -> None:
    file = tmp_path_factory.mktemp("rows") / "rows.json"
    Results(HERE, found).save(file)
    loaded = Results.load(file)
    assert loaded.environment == HERE
    assert len(loaded) == len(found)
    for row, expected in zip(loaded, found, strict=True):
        assert row.key == expected.key
        assert [type(v) for v in row.settings.values()] == [
            type(v) for v in expected.settings.values()
        ]
        assert row.ratios == pytest.approx(expected.ratios)
        assert row.error == expected.error
        assert (row.time is None) == (expected.time is None)
        if row.time is not None:
            assert row.time == pytest.approx(expected.time)


def test_units_and_words() -> None:
    values = ROW.to_dict()
    assert values["microseconds_per_image"] == pytest.approx({"median": 3, "low": 2, "high": 4})
    assert ROW.subject == "gather, batch 8, size 224.5, cold"
    assert str(ROW) == "operators: gather, batch 8, size 224.5, cold: ours"


def test_a_row_twice_is_an_error() -> None:
    results = Results(HERE, [ROW])
    with pytest.raises(ValueError, match=r"batch 8.*twice"):
        results.add(ROW)


def test_the_environment_is_this_ones() -> None:
    assert HERE.torch_version == torch.__version__
    assert HERE.threads == torch.get_num_threads()
    assert HERE.device_type == "cpu"
    assert HERE.instruction_set == torch.backends.cpu.get_cpu_capability()
    assert HERE.date.endswith("+00:00")
    assert torch.__version__ in HERE.summary
    assert HERE.freed_memory in ("kept", "returned")


def document() -> dict[str, Any]:
    return {
        "format": "anchornet_ext benchmark",
        "format_version": 1,
        "environment": HERE.to_dict(),
        "rows": [ROW.to_dict()],
    }


def changed(**values: Any) -> dict[str, Any]:
    return document() | values


def with_row(**values: Any) -> dict[str, Any]:
    return changed(rows=[ROW.to_dict() | values])


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in document().items() if key != name}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("\x00\x01", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("null", "not written by"),
        ("[1, 2]", "not written by"),
        ('{"rows": []}', "not written by"),
        (changed(format="anchornet_ext latency"), "not written by"),
        (changed(format_version=2), "format version 2"),
        (without("rows"), "no entry 'rows'"),
        (without("environment"), "no entry 'environment'"),
        (changed(rows={}), "rows must be a list"),
        (changed(rows=[ROW.to_dict()] * 2), "twice"),
        (changed(rows=[3]), "row is not complete"),
        (changed(environment=[]), "environment must be"),
        (changed(environment={}), "no entry 'version'"),
        (changed(environment=HERE.to_dict() | {"threads": "many"}), "threads is 'many'"),
        (with_row(settings={"batch": [8]}), "settings must be"),
        (with_row(settings={"batch": None}), "settings must be"),
        (with_row(settings=[]), None),
        (with_row(settings=3), "row is not complete"),
        (with_row(name=3), "names must be text"),
        (with_row(ratios={"floor": 0}), "above 0, got 0"),
        (with_row(ratios={"floor": "fast"}), "'fast'"),
        (with_row(microseconds_per_image={"median": 1, "low": 1}), "not complete"),
        (with_row(microseconds_per_image={"median": -1, "low": 1, "high": 1}), "got -1"),
        (with_row(microseconds_per_image={"median": float("nan"), "low": 1, "high": 1}), "nan"),
        (with_row(microseconds_per_image={"median": True, "low": 1, "high": 1}), "True"),
        (with_row(microseconds_per_image=7), "not complete"),
    ],
)
def test_another_file_is_refused_by_name(content: Any, said: str | None, tmp_path: Path) -> None:
    file = tmp_path / "old.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    if said is None:
        Results.load(file)
        return
    with pytest.raises(ValueError, match=said) as error:
        Results.load(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_from_before_freed_memory_was_a_choice_kept_it(tmp_path: Path) -> None:
    file = tmp_path / "older.json"
    environment = HERE.to_dict()
    del environment["freed_memory"]
    file.write_text(json.dumps(changed(environment=environment)))
    assert Results.load(file).environment.freed_memory == "kept"


def test_entries_of_a_later_version_are_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "new.json"
    file.write_text(json.dumps(changed(environment=HERE.to_dict() | {"moon": "full"}, more=3)))
    assert Results.load(file).environment == HERE


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rows.json"
    Results(HERE, [ROW]).save(file)
    before = file.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        Results(HERE).save(file)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]

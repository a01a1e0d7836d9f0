"""What has changed between two runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchornet_ext.benchmark.compare import compare, describe
from anchornet_ext.benchmark.environment import Environment
from anchornet_ext.benchmark.rows import Results, Row
from anchornet_ext.evaluation.timing import Timing

HERE = Environment.of(torch.device("cpu"), "anchornet bench")


def row(median: float | None, low: float = 0.0, high: float = 0.0, **fields: Any) -> Row:
    values = {"suite": "operators", "name": "ours", "settings": {"batch": 8}} | fields
    time = None if median is None else Timing(median, low or median, high or median)
    return Row(**values, time=time, error="no memory" if time is None else None)


def results(*rows: Row, environment: Environment = HERE) -> Results:
    return Results(environment, rows)


def test_a_difference_beyond_the_quartiles_is_marked() -> None:
    old = results(
        row(10e-6, 9e-6, 11e-6, name="a"),
        row(10e-6, 9e-6, 11e-6, name="b"),
        row(10e-6, 9e-6, 11e-6, name="c"),
    )
    new = results(
        row(20e-6, 19e-6, 21e-6, name="a"),
        row(10.9e-6, 10.5e-6, 12e-6, name="b"),
        row(5e-6, 4e-6, 6e-6, name="c"),
    )
    comparison = compare(new, old)
    slower, same, faster = comparison.changes
    assert slower.ratio == pytest.approx(2)
    assert (slower.low, slower.high) == pytest.approx((19 / 11, 21 / 9))
    assert [change.outside for change in (slower, same, faster)] == [True, False, True]
    text = list(describe(comparison))
    marked = [line for line in text if line.startswith("* ")]
    assert len(marked) == 2
    assert marked[0].endswith("slower")
    assert "2.000  1.727 to 2.333" in marked[0]
    assert marked[1].endswith("faster")
    assert any("3 rows compared: 1 slower, 1 faster" in line for line in text)


def test_rows_match_by_suite_name_and_all_settings() -> None:
    same = {"size": 224, "batch": 8}  # in another order
    old = results(
        row(1e-6, settings={"batch": 8, "size": 224}),
        row(2e-6, settings={"batch": 8, "size": 224}, name="reference"),
        row(3e-6, settings={"batch": 8, "size": 224}, suite="stream"),
        row(4e-6, settings={"batch": 9, "size": 224}),
        row(5e-6, settings={"batch": 8}),
    )
    comparison = compare(results(row(1e-6, settings=same)), old)
    (change,) = comparison.changes
    assert change.ratio == 1
    assert [found.time.median for found in comparison.only_old if found.time] == [
        2e-6,
        3e-6,
        4e-6,
        5e-6,
    ]
    text = "\n".join(describe(comparison))
    # A suite that was not measured again is one line; single rows of one that was are listed.
    assert "  stream: 1 row\n" in text
    assert "operators: batch 9, size 224: ours" in text
    assert "Only in the new run" not in text


def test_new_rows_are_listed() -> None:
    comparison = compare(results(row(1e-6), row(1e-6, name="new")), results(row(1e-6)))
    assert [found.name for found in comparison.only_new] == ["new"]
    assert "operators: batch 8: new" in "\n".join(describe(comparison))


def test_what_fails_now_is_no_speed_up() -> None:
    old = results(row(1e-6, name="a"), row(None, name="b"), row(None, name="c"))
    new = results(row(None, name="a"), row(1e-6, name="b"), row(None, name="c"))
    comparison = compare(new, old)
    assert not comparison.changes
    assert [found.name for found in comparison.now_failing] == ["a"]
    assert [found.name for found in comparison.now_running] == ["b"]
    text = "\n".join(describe(comparison))
    assert "Failing now:\n  operators: batch 8: a: no memory" in text
    assert "Running now, failed before:\n  operators: batch 8: b" in text
    assert "No row was timed in both runs." in text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("device", "Another Processor"),
        ("threads", 64),
        ("torch_version", "2.11.0"),
        ("instruction_set", "none"),
        ("clock", "sundial"),
        ("device_type", "cuda"),
        ("freed_memory", "given away"),
    ],
)
def test_another_environment_is_said(field: str, value: Any) -> None:
    there = replace(HERE, **{field: value})
    text = list(describe(compare(results(row(1e-6)), results(row(1e-6), environment=there))))
    assert "not alike" in text[0]
    assert text[1].strip().startswith(field.replace("_", " "))
    assert str(value) in text[1]
    assert "1 row compared: 0 slower, 0 faster" in "\n".join(text)


def test_the_same_environment_at_another_time_is_not_another() -> None:
    there = replace(HERE, date="2001-01-01T00:00:00+00:00", command="anchornet bench operators")
    text = "\n".join(describe(compare(results(row(1e-6)), results(row(1e-6), environment=there))))
    assert "alike" not in text


def test_the_machines_own_change_is_seen_in_the_floors() -> None:
    old = results(row(1e-6), *(row(1e-6, name="floor", settings={"b": b}) for b in range(3)))
    new = results(
        row(1e-6), *(row((1 + b) * 1e-6, name="floor", settings={"b": b}) for b in range(3))
    )
    comparison = compare(new, old)
    assert comparison.floor == pytest.approx(2)
    text = "\n".join(describe(comparison))
    assert "took 2.000 of their old time" in text
    assert "1 row compared" in text  # floors are not the package's


times = st.tuples(*[st.floats(1e-9, 1e3)] * 3).map(sorted)


@given(times, times)
@settings(max_examples=50, deadline=None)
def test_outside_means_that_the_quartiles_do_not_meet(a: list[float], b: list[float]) -> None:
    def as_row(values: list[float]) -> Row:
        return row(values[1], values[0], values[2])

    (change,) = compare(results(as_row(a)), results(as_row(b))).changes
    meet = a[0] <= b[2] and b[0] <= a[2]
    # Division may round what just touches either way.
    if abs(a[0] - b[2]) > 1e-12 * b[2] and abs(b[0] - a[2]) > 1e-12 * a[2]:
        assert change.outside == (not meet)
    (back,) = compare(results(as_row(b)), results(as_row(a))).changes
    assert change.ratio * back.ratio == pytest.approx(1)

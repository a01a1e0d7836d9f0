"""`anchornet compare`: what may be compared, what is found, and what is said of it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Command, in_this_process
from hypothesis import given, settings
from hypothesis import strategies as st

from anchornet_ext.evaluation.comparison.budgets import (
    score_images,
    shared_budgets,
    standings,
)
from anchornet_ext.evaluation.comparison.entries import (
    Entry,
    distinct_names,
    read_entry,
    same_conditions,
    same_images,
)
from anchornet_ext.evaluation.comparison.report import compare_entries, said, to_json
from anchornet_ext.evaluation.comparison.sentences import about_leaders, about_standing
from anchornet_ext.evaluation.curves import cross_fit
from anchornet_ext.evaluation.latency import LatencyReport
from anchornet_ext.evaluation.report_data import Latency, MeasuredTime
from anchornet_ext.evaluation.wall_clock import increasing
from anchornet_ext.policy.exit_table import ExitTable

CLASSES = ["ant", "bee", "cat"]
SETTING = {"device": "a processor", "threads": "1", "batch size": "32", "clock": "wall clock"}


def make_table(
    accuracies: Sequence[float], costs: Sequence[float], *, count: int = 400, seed: int = 0,
    **metadata: Any,
) -> ExitTable:  # fmt: skip
    """A system whose exits are right so often, surer where they are right."""
    rng = np.random.default_rng(seed)
    difficulty = np.random.default_rng(99).random(count)  # the same images for all
    right = difficulty[:, None] < np.asarray(accuracies)[None, :]
    label = (np.arange(count) % 3).astype(np.int32)
    prediction = np.where(right, label[:, None], (label[:, None] + 1) % 3).astype(np.int32)
    sure = np.clip(0.9 - 0.5 * difficulty[:, None] + rng.normal(0, 0.05, right.shape), 0.34, 1)
    return ExitTable(
        confidence=sure.astype(np.float32),
        correct=right,
        cost=np.asarray(costs, np.float64),
        prediction=prediction,
        label=label,
        image_ids=np.array([f"{CLASSES[n % 3]}/{n}.png".encode() for n in range(count)]),
        metadata={"system": "S", "data": "val", "class_names": CLASSES, **metadata},
    )


def save(
    folder: Path, table: ExitTable, milliseconds: Sequence[float] = (), **setting: str
) -> Path:
    folder.mkdir(parents=True)
    table.save(folder / "exits.npz")
    if milliseconds:
        times = tuple(
            MeasuredTime(f"exit {t}", "exit", time, time, time, 1.0)
            for t, time in enumerate(milliseconds, start=1)
        )
        LatencyReport(None, Latency(times, SETTING | setting)).save(folder / "latency.json")
    return folder


def entry(name: str, accuracies: Sequence[float], costs: Sequence[float], **more: Any) -> Entry:
    return Entry(name, Path(name), make_table(accuracies, costs, **more))


@pytest.fixture
def compare(capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Runs `anchornet compare ARGUMENTS` in this process."""
    with in_this_process(capsys, "compare") as run:
        yield run


def test_one_report_of_all_systems(tmp_path: Path, compare: Command) -> None:
    tables = {
        "small": (make_table((0.5, 0.7), (1e6, 4e6), system="Small"), (0.1, 0.5)),
        "large": (make_table((0.9,), (9e6,), system="Large"), (1.5,)),
        "dark": (make_table((0.6, 0.8), (2e6, 6e6), system="Untimed"), ()),
    }
    runs = [save(tmp_path / name, table, times) for name, (table, times) in tables.items()]
    out = tmp_path / "report"
    done = compare(*runs, "--out", out)
    assert done.returncode == 0, done.stderr
    page = (out / "report.html").read_text()
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    for name in ("Small", "Large", "Untimed"):
        assert name in page
    said = "Untimed was not timed: the time of its exits was not measured."
    assert said in page
    assert said in done.stdout
    for name in ("macs", "milliseconds"):
        assert (out / "figures" / f"accuracy_over_{name}.png").read_bytes()[:4] == b"\x89PNG"
    rows = list(csv.DictReader((out / "anytime.csv").open()))
    assert [(row["system"], row["exit"]) for row in rows] == [
        ("Small", "1"), ("Small", "2"), ("Large", "1"), ("Untimed", "1"), ("Untimed", "2"),
    ]  # fmt: skip
    assert float(rows[2]["milliseconds"]) == 1.5
    assert rows[3]["milliseconds"] == ""
    result = json.loads((out / "comparison.json").read_text())
    assert result["num_images"] == 400
    assert {row["costs"] for row in result["standings"]} == {"macs", "milliseconds"}
    timed = {row["system"] for row in result["standings"] if row["costs"] == "milliseconds"}
    assert timed == {"Small", "Large"}
    # Written again, the same; into an evaluation, not at all.
    before = (out / "comparison.json").read_bytes()
    assert compare(*runs, "--out", out).returncode == 0
    assert (out / "comparison.json").read_bytes() == before
    refused = compare(*runs, "--out", runs[0])
    assert refused.returncode == 2
    assert "holds an evaluation" in refused.stderr


def test_names_can_be_given_and_never_repeat(tmp_path: Path, compare: Command) -> None:
    one = save(tmp_path / "one", make_table((0.5,), (1e6,)))
    two = save(tmp_path / "two", make_table((0.6,), (2e6,)))
    done = compare(one, f"Mine={two}", "--out", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "report" / "comparison.json").read_text())
    assert [system["name"] for system in result["systems"]] == ["S", "Mine"]
    same = [read_entry(one), read_entry(two), read_entry(two)]
    assert [each.name for each in distinct_names(same)] == ["S, one", "S, two", "S, two 2"]


def changed(change: Callable[[ExitTable], ExitTable]) -> ExitTable:
    return change(make_table((0.6,), (2e6,)))


REFUSED = {
    "other data": (
        lambda t: replace(t, metadata={**t.metadata, "data": "test"}),
        "was evaluated on 'val' and",
    ),
    "other classes": (
        lambda t: replace(t, metadata={**t.metadata, "class_names": ["ant", "cow", "cat"]}),
        "class 1 is 'bee' in",
    ),
    "more classes": (
        lambda t: replace(t, metadata={**t.metadata, "class_names": [*CLASSES, "dog"]}),
        "has 3 classes and",
    ),
    "fewer images": (lambda t: t.subset(np.arange(300)), "100 images of"),
    "other images": (
        lambda t: replace(t, image_ids=np.array([b"x%d.png" % n for n in range(400)])),
        "400 images of",
    ),
    "other labels": (
        lambda t: replace(
            t,
            label=((t.label + 1) % 3).astype(np.int32),
            prediction=((t.prediction + 1) % 3).astype(np.int32),
        ),
        "are of other classes in",
    ),
    "no images": (lambda t: replace(t, image_ids=None), "does not say which images it is of"),
    "no costs": (lambda t: replace(t, cost=None), "does not say what its exits cost"),
    "no classes": (
        lambda t: replace(t, metadata={"system": "S", "data": "val"}),
        "does not say which classes there are",
    ),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_of_the_same_images_is_refused(
    tmp_path: Path, compare: Command, change: Callable[[ExitTable], ExitTable], message: str
) -> None:
    one = save(tmp_path / "one", make_table((0.5,), (1e6,)))
    two = save(tmp_path / "two", changed(change))
    done = compare(one, two, "--out", tmp_path / "report")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "report").exists()


def test_one_run_or_none_is_refused(tmp_path: Path, compare: Command) -> None:
    one = save(tmp_path / "one", make_table((0.5,), (1e6,)))
    alone = compare(one, "--out", tmp_path / "report")
    assert "two evaluations or more, got 1" in alone.stderr
    missing = compare(one, tmp_path / "nowhere", "--out", tmp_path / "report")
    assert "nowhere" in missing.stderr
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    full = compare(one, one, "--out", tmp_path / "full")
    assert "is not empty and holds no comparison" in full.stderr


def test_images_are_matched_by_name_not_by_place() -> None:
    one = entry("one", (0.5, 0.7), (1e6, 2e6))
    shuffled = np.random.default_rng(3).permutation(400)
    two = replace(one, name="two", table=one.table.subset(shuffled))
    aligned = same_images([one, two])
    np.testing.assert_array_equal(aligned[1].table.confidence, one.table.confidence)
    fewer = replace(two, table=two.table.subset(np.arange(250)))
    with pytest.raises(ValueError, match="--common-images"):
        same_images([one, fewer])
    common = same_images([one, fewer], common=True)
    assert [each.table.num_images for each in common] == [250, 250]
    np.testing.assert_array_equal(common[0].table.image_ids, common[1].table.image_ids)


def test_only_times_of_the_same_conditions_are_compared(tmp_path: Path) -> None:
    table = make_table((0.5, 0.7), (1e6, 2e6))
    folders = [
        save(tmp_path / "a", table, (1.0, 2.0)),
        save(tmp_path / "b", table, (1.0, 0.9)),  # later exits cannot take less
        save(tmp_path / "c", table, (1.0, 2.0), threads="2"),
        save(tmp_path / "d", replace(table, milliseconds=np.array([1.0, 2.0]))),
    ]
    found = same_conditions([read_entry(folder) for folder in folders])
    assert [each.table.milliseconds is not None for each in found] == [True, True, False, False]
    assert found[1].table.milliseconds == pytest.approx([0.95, 0.95])
    assert "threads 2 and not 1" in str(found[2].why_untimed)
    assert "without their conditions" in str(found[3].why_untimed)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0], [3.0]),
        ([1.0, 2.0, 3.0], [1, 2, 3]),
        ([2.0, 1.0, 3.0], [1.5, 1.5, 3]),
        ([3.0, 2.0, 1.0], [2, 2, 2]),
        ([1.0, 5.0, 3.0, 4.0], [1, 4, 4, 4]),
    ],
)
def test_times_are_made_increasing(values: list[float], expected: list[float]) -> None:
    found = increasing(np.array(values))
    assert found == pytest.approx(expected)
    assert (np.diff(found) > 0).all()


def test_a_clear_winner_is_told_and_a_tie_is_not() -> None:
    # b has one image of 400 more than a; c and d have far fewer.
    entries = [
        entry("a", (0.800,), (1e6,)), entry("b", (0.803,), (1e6,)),
        entry("c", (0.500,), (1e6,)), entry("d", (0.9, 0.95), (5e6, 9e6)),
    ]  # fmt: skip
    (first,) = standings(entries, "macs", [2e6])
    assert {score.name for score in first.scores[:2]} == {"a", "b"}
    assert [score.is_told_apart for score in first.scores] == [False, False, True]
    assert first.too_dear == ("d",)
    said = about_standing(first)
    assert "cannot be told from it" in said
    assert "c (by 3" in said
    assert "d costs more than that from the first exit on" in said
    (second,) = standings(entries, "macs", [9e6])
    assert second.scores[0].name == "d"
    assert all(score.is_told_apart for score in second.scores[1:])
    assert about_leaders([second]) == "By multiply-adds: d is ahead of all others at 9.00 MMACs."
    assert "within chance" not in about_standing(second)


def test_intervals_widen_with_the_number_of_comparisons() -> None:
    entries = [entry("a", (0.80,), (1e6,)), entry("b", (0.77,), (1e6,))]
    (alone,) = standings(entries, "macs", [2e6])
    among = standings(
        [*entries, *(entry(f"x{n}", (0.5,), (1e6,)) for n in range(6))], "macs", [2e6]
    )
    width = alone.scores[1].behind.half_width
    other = next(score for score in among[0].scores if score.name == "b")
    assert other.behind.value == alone.scores[1].behind.value
    assert other.behind.half_width > 1.3 * width


def test_scores_are_those_of_the_budgeted_curve() -> None:
    """The same halves and thresholds as `cross_fit`, so the same accuracies and costs."""
    one = entry("one", (0.5, 0.7, 0.9), (1e6, 2e6, 4e6))
    curve = cross_fit(one.table, num_points=5)
    scores, spent = score_images(one, "macs", curve.budget, seed=0)
    np.testing.assert_allclose(scores.mean(axis=0), curve.accuracy.value, atol=1e-6)
    np.testing.assert_allclose(spent, curve.cost)
    assert (spent <= curve.budget * 1.1).all()


def test_chosen_budgets_are_round_and_at_least_two_can_take_part() -> None:
    values = [np.array([1.13e6, 4e6]), np.array([2.31e6]), np.array([9.99e6, 4.01e7])]
    budgets = shared_budgets(values)
    assert budgets[0] == pytest.approx(2.4e6)
    assert budgets[-1] >= 4.01e7
    assert budgets == sorted(budgets)
    assert all(float(f"{budget:.2g}") == pytest.approx(budget) for budget in budgets)


def test_too_few_images_are_said_and_not_hidden(tmp_path: Path, compare: Command) -> None:
    runs = [
        save(tmp_path / name, make_table(right, (1e6, 2e6), count=30))
        for name, right in (("one", (0.5, 0.6)), ("two", (0.6, 0.7)))
    ]
    done = compare(*runs, "--out", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    assert "There is no comparison at budgets" in done.stdout
    assert (tmp_path / "report" / "figures" / "accuracy_over_macs.png").exists()


COST = st.floats(1, 1e10) | st.floats(1e-100, 1e100)
COSTS_OF_EXITS = st.lists(COST, min_size=1, max_size=4, unique=True).map(sorted)


@st.composite
def any_entry(draw: st.DrawFn) -> Entry:
    """A system of up to four exits at any costs, right at none, some or all images."""
    costs = draw(COSTS_OF_EXITS)
    right = [draw(st.sampled_from((0.0, 0.3, 0.6, 1.0))) for _ in costs]
    made = entry(f"system {draw(st.integers(0, 10**9))}", right, costs, count=40)
    if draw(st.booleans()):  # as SAR's images do
        each = np.broadcast_to(made.table.costs(), made.table.confidence.shape).copy()
        made = replace(made, table=replace(made.table, image_cost=each))
    if len(times := draw(COSTS_OF_EXITS)) == len(costs):
        made = replace(made, table=replace(made.table, milliseconds=np.array(times)))
    return made


@settings(max_examples=15, deadline=None)
@given(
    st.lists(any_entry(), min_size=2, max_size=4, unique_by=lambda one: one.name),
    st.none() | COSTS_OF_EXITS,
    st.none() | COSTS_OF_EXITS,
)
def test_systems_of_any_costs_can_be_compared(
    entries: list[Entry], budgets: list[float] | None, times: list[float] | None
) -> None:
    found = compare_entries(
        entries, {"macs": budgets or [], "milliseconds": times or []}, num_points=3
    )
    json.dumps(to_json(found, {}), allow_nan=False)
    text = " ".join(said(found))
    for budget in budgets or []:
        able = {one.name for one in entries if one.table.costs()[0] <= budget}
        standing = [one for one in found.standings["macs"] if one.budget == budget]
        assert {score.name for one in standing for score in one.scores} == able
    if budgets and budgets[0] < min(one.table.costs()[0] for one in entries):
        assert "No system can keep to a mean of" in text


def test_an_image_that_is_always_right_is_right_once() -> None:
    """The mean over ten splits is 1, however it is rounded on the way."""
    always = entry("always", (0.0, 1.0), (1e6, 2e6), count=40)
    scores, _ = score_images(always, "macs", np.array([2e6]), seed=0)
    assert scores.max() == 1


def test_a_budget_that_nothing_can_keep_to_is_said(tmp_path: Path, compare: Command) -> None:
    runs = [
        save(tmp_path / "one", make_table((0.5, 0.6), (2e6, 3e6), system="Several"), (1.0, 2.0)),
        save(tmp_path / "two", make_table((0.6,), (9e6,), system="Single")),
    ]
    done = compare(
        *runs, "--budgets", "1M,4M", "--time-budgets", "3ms", "--out", tmp_path / "report"
    )
    assert done.returncode == 0, done.stderr
    assert (
        "No system can keep to a mean of 1.00 MMACs an image: the cheapest, Several, costs "
        "2.00 MMACs at its first exit." in done.stdout
    )
    assert "Times cannot be compared: of the 2 systems, 1 was timed." in done.stdout
    result = json.loads((tmp_path / "report" / "comparison.json").read_text())
    assert [(row["system"], row["budget"]) for row in result["standings"]] == [("Several", 4e6)]


def test_it_is_said_what_the_exits_of_a_network_count() -> None:
    costs = (5e6, 9e6)
    entries = [
        entry("lazy", (0.6, 0.8), costs, macs_per_exit_blocks=[7_000_000, 9_000_000]),
        entry("whole", (0.6, 0.8), costs, macs_per_exit_blocks=[5_000_000, 9_000_000]),
        entry("other", (0.6, 0.8), costs),
    ]
    lines = said(compare_entries(entries))
    (lazy,) = [line for line in lines if "only what that exit needs" in line]
    assert lazy.startswith("lazy computes")
    assert "5.00 MMACs, 9.00 MMACs. In whole blocks" in lazy
    assert "it would be 7.00 MMACs, 9.00 MMACs" in lazy
    assert "whole is counted in whole blocks, as published tables are." in lines
    assert not [line for line in lines if line.startswith("other") and "blocks" in line]

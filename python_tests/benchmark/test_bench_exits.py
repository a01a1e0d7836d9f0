"""What the suite `exits` measures is real early exit, and its words say what the figures are."""

from __future__ import annotations

import argparse

import pytest
import torch

from anchornet_ext.benchmark import exits
from anchornet_ext.benchmark.harness import Options
from anchornet_ext.benchmark.rows import Row


def options(**arguments: object) -> Options:
    names = argparse.Namespace(**arguments)
    return Options(torch.device("cpu"), sizes=(16,), quick=True, arguments=names)


def test_every_exit_and_schedule_is_measured() -> None:
    rows = list(exits.measure(options(schedules=["blocks", "needed"])))
    assert not [row.error for row in rows if row.error]
    names = [f"exit {k}" for k in range(1, 6)] + ["simulated"]
    assert [row.name for row in rows] == 2 * names
    assert [row.settings["schedule"] for row in rows] == 6 * ["blocks"] + 6 * ["needed"]
    first, other = rows[0].facts["macs"], rows[6].facts["macs"]
    assert other["exit 1"] < first["exit 1"] < first["exit 2"]
    assert first["exit 5"] == rows[0].facts["full macs"]
    # Whatever the speed of this machine, real early exit at the last exit does all the work.
    assert all(set(row.ratios) <= {"exit 5", "simulated"} for row in rows)


def test_contenders_leave_where_they_say() -> None:
    network = exits.NETWORKS["msdnet-cifar-batch"](10).tuned()
    calls = exits._contenders(network, 2, 16, torch.device("cpu"))
    for k in range(1, 6):
        assert calls[f"exit {k}"]().exit_step.tolist() == [k, k]
    assert calls["simulated"]().shape == (5, 2, 10)


def row(name: str, ratios: dict[str, float]) -> Row:
    facts = {"macs": {"exit 1": 2_000_000, "exit 2": 8_000_000}, "full macs": 8_000_000}
    return Row("exits", name, {}, None, ratios, facts)


@pytest.mark.parametrize(
    ("name", "ratios", "words"),
    [
        (
            "exit 1",
            {"exit 2": 3.0, "simulated": 2.9},
            "2.0 M multiply-adds, 4.00 times fewer: 0.75 of that realised",
        ),
        ("exit 2", {"simulated": 1.0}, "8.0 M multiply-adds"),
        ("simulated", {"exit 2": 1.0}, ""),
    ],
)
def test_words(name: str, ratios: dict[str, float], words: str) -> None:
    assert exits.describe(row(name, ratios)) == words

"""A trained plain network is timed beside the systems that are compared with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import Command
from system_runs import Trained

from anchornet_ext.evaluation.plain_network import PlainNetwork
from anchornet_ext.evaluation.wall_clock import rebuild_plain
from anchornet_ext.policy.exit_table import ExitTable
from anchornet_ext.systems.common import storage

CPU = torch.device("cpu")
QUICK = ("--workers", 0, "--threads", 1, "--no-report", "--no-latency")


@pytest.fixture
def table(
    trained: Callable[[str], Trained], photos: Path, tmp_path: Path, anchornet: Command
) -> Callable[[str], ExitTable]:
    """Name of a system -> the exit table of its run, with the checksum that its model has."""

    def evaluated(name: str) -> ExitTable:
        out = tmp_path / name
        run = trained(name).run
        done = anchornet("evaluate", "--model", run, "--data", photos / "val", "--out", out, *QUICK)
        assert done.returncode == 0, done.stderr
        return ExitTable.load(out / "exits.npz")

    return evaluated


def test_a_trained_plain_network_is_had_again(
    table: Callable[[str], ExitTable], trained: Callable[[str], Trained]
) -> None:
    of_run = table("plain")
    network = rebuild_plain(of_run, CPU)
    assert isinstance(network, PlainNetwork), network
    assert network.checksum == storage.read(trained("plain").run / "model").checksum
    images = torch.rand(2, 3, 32, 32)
    expected = trained("plain").exits.anytime_logits(images)[0]
    torch.testing.assert_close(network.tuned(images), expected)
    changed = dict(of_run.metadata, checksum="of other weights")
    other = ExitTable(of_run.confidence, of_run.correct, of_run.cost, metadata=changed)
    assert "its weights are not the ones" in str(rebuild_plain(other, CPU))


def test_a_system_of_several_exits_is_not_timed_as_a_plain_network(
    table: Callable[[str], ExitTable],
) -> None:
    said = rebuild_plain(table("msdnet"), CPU)
    assert said == "MSDNet (msdnet) was not timed: it is no plain network, but has 3 exits."

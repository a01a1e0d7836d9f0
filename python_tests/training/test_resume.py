"""A run that is killed and resumed ends with the same bits as one that is not."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_line import Command, command_line, environment
from safetensors.torch import load_file

# Everything that is random or has a state is on: augmentation, mixup, cutmix, dropout, the average
# of the weights, momentum, the schedule.
FLAGS = (
    *("--backbone", "shufflenet_v2_x0_5", "--stages", "anchor", "--threads", 1, "--workers", 1),
    *("--crop-size", 96, "--resize-size", 100, "--anchor-batch", 6, "--anchor-epochs", 4),
    *("--anchor-augment", "trivialaugment", "--anchor-mixup", 0.2, "--anchor-cutmix", 0.5),
    *("--anchor-dropout", 0.3, "--anchor-ema", 0.9, "--anchor-lr", 0.02, "--log-interval", 0),
)


def final_tensors(run: Path) -> dict[str, torch.Tensor]:
    state = torch.load(run / "anchor" / "last.pt", weights_only=True)
    tensors = {f"best.{k}": v for k, v in load_file(run / "anchor" / "best.safetensors").items()}
    tensors |= {f"model.{k}": v for k, v in state["model"].items()}
    tensors |= {f"average.{k}": v for k, v in state["average"].items()}
    for i, slot in state["optimizer"]["state"].items():
        tensors[f"momentum.{i}"] = slot["momentum_buffer"]
    return tensors


def epochs_done(run: Path) -> int:
    path = run / "anchor" / "log.csv"
    return len(path.read_text().splitlines()) - 1 if path.exists() else 0


def run_and_kill(arguments: list[object], meanwhile: Callable[[], None]) -> None:
    """Kills the command in the middle of the epoch after the second, stopped there for a while."""
    with subprocess.Popen(
        command_line(*arguments),
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:  # one line each step, as --log-interval 0 asks
            said.append(line)
            if line.startswith("anchor 3/4 2/4"):
                break
        else:
            pytest.fail(f"the command ended with {process.wait()}: {''.join(said)}")
        os.killpg(process.pid, signal.SIGSTOP)  # its workers, too
        try:
            meanwhile()
        finally:
            os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL


def test_killed_and_resumed_equals_uninterrupted(
    photos: Path, tmp_path: Path, anchornet: Command
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    common = ["train", "--data", photos, *FLAGS]
    done = anchornet(*common, "--out", whole)
    assert done.returncode == 0, done.stderr

    def nobody_else_trains_there() -> None:
        for flags in ([], ["--resume"], ["--overwrite"], ["--stages", "backbone"]):
            second = anchornet(*common, "--out", killed, *flags)
            assert second.returncode == 2
            assert second.stderr.count("\n") == 1
            if flags:
                assert f"another process is writing into {str(killed)!r}" in second.stderr

    run_and_kill([*common, "--out", killed], nobody_else_trains_there)
    assert epochs_done(killed) == 2
    refused = anchornet(*common, "--out", killed)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr
    resumed = anchornet(*common, "--out", killed, "--resume", "--cache", "--workers", 0)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed after epoch 2" in resumed.stderr
    expected, found = final_tensors(whole), final_tensors(killed)
    assert expected.keys() == found.keys()
    different = [name for name in expected if not torch.equal(expected[name], found[name])]
    assert different == []
    assert any(name.startswith("momentum.") for name in expected)
    assert epochs_done(killed) == epochs_done(whole) == 4
    assert not list(killed.rglob(".*"))  # no temporary files stay


def test_resuming_a_finished_run_changes_nothing(
    photos: Path, tmp_path: Path, anchornet: Command
) -> None:
    common = ["train", "--data", photos, *FLAGS, "--anchor-epochs", 1, "--out", tmp_path]
    assert anchornet(*common).returncode == 0
    path = tmp_path / "anchor" / "best.safetensors"
    before = (path.read_bytes(), path.stat().st_mtime_ns)
    time.sleep(0.01)
    assert anchornet(*common, "--resume").returncode == 0
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    changed = anchornet(*common, "--resume", "--anchor-lr", 0.5)
    assert changed.returncode == 2
    assert "begun with lr = 0.02 and cannot be resumed with 0.5" in changed.stderr
    photo = photos / "train" / "ant" / "0.png"
    moved = photo.rename(photo.with_name("renamed.png"))
    other = anchornet(*common, "--resume")
    moved.rename(photo)
    assert other.returncode == 2
    assert "names of the training images" in other.stderr
    for split in ("train", "val"):
        photo = photos / split / "ant" / "0.png"
        content = photo.read_bytes()
        photo.write_bytes(content + b"\0")
        other = anchornet(*common, "--resume")
        photo.write_bytes(content)
        assert other.returncode == 2
        assert f"file sizes of the {split.replace('train', 'training')}" in other.stderr
    assert anchornet(*common, "--overwrite", "--anchor-lr", 0.5).returncode == 0
    assert path.read_bytes() != before[0]

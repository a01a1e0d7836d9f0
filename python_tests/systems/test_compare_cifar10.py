"""benchmarks/compare_cifar10.py: a tiny run of it, and what it trains with."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from benchmark_scripts import load_script

from anchornet_ext import cli
from anchornet_ext._machine import using_threads
from anchornet_ext.models.cifar_resnet import CifarResNet
from anchornet_ext.training import command


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("compare_cifar10")


@pytest.fixture
def here(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """Runs the script's commands in this process; they are recorded here."""
    ran: list[Sequence[str]] = []

    def run(words: Sequence[str]) -> float:
        ran.append(words)
        with using_threads():
            assert cli.main([*words]) == 0
        return 1.5

    monkeypatch.setattr(script, "anchornet", run)
    return ran


def plans(
    script: ModuleType, photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *more: str
) -> dict[str, Any]:
    """What each system would be trained with, by its name in the script."""
    found: dict[str, Any] = {}

    def begin(args: Any, system: Any, plan: Any, *rest: Any) -> None:
        found[plan.run.name] = plan

    monkeypatch.setattr(command, "_train", begin)
    where = ["train", "--data", str(photos), "--out", str(out)]
    script.main([*where, "--flags", "--threads 1 --workers 0", *more])
    return found


def test_without_few_it_is_the_papers_training(
    script: ModuleType, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    here: list[Sequence[str]],
) -> None:  # fmt: skip
    found = plans(script, photos, tmp_path, monkeypatch)
    assert list(found) == list(script.ENTRIES)
    assert all(str(photos) in words for words in here)
    for name, plan in found.items():
        config = plan.configs["network"]
        assert (config.epochs, config.pad, plan.preprocessing.crop_size) == (300, 4, 32)
        assert config.schedule == ("cosine" if name == "sar" else "step")
        assert config.batch == (64 if name in ("ranet", "msdnet") else 128)
    assert found["ranet"].options.preset == "cifar"
    assert found["sar"].options.penalty == 1.0


def test_few_is_the_same_for_all_but_for_the_epochs(
    script: ModuleType, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    here: list[Sequence[str]],
) -> None:  # fmt: skip
    few = ("--few", "--images-per-class", "5")
    found = plans(script, photos, tmp_path, monkeypatch, *few)
    configs = {name: plan.configs["network"] for name, plan in found.items()}
    assert {name: config.epochs for name, config in configs.items()} == {
        name: entry.epochs for name, entry in script.ENTRIES.items()
    }
    for config in configs.values():
        assert (config.batch, config.lr, config.schedule, config.pad) == (64, 0.1, "cosine", 4)
        assert (config.warmup_epochs, config.label_smoothing) == (0, 0)
    assert len(list((tmp_path / "data" / "train").glob("*/*"))) == 3 * 5
    held_out = list((tmp_path / "data" / "val").glob("*/*"))
    assert len(held_out) == 3
    trained_on = {path.resolve() for path in (tmp_path / "data" / "train").glob("*/*")}
    assert not trained_on & {path.resolve() for path in held_out}
    with pytest.raises(ValueError, match="has 8 images; --images-per-class 8 and 1"):
        plans(script, photos, tmp_path / "other", monkeypatch, "--few", "--images-per-class", "8")


def test_trains_evaluates_and_compares(
    script: ModuleType, photos: Path, tmp_path: Path, here: list[Sequence[str]]
) -> None:
    pytest.importorskip("matplotlib")
    where = ["--data", str(photos), "--out", str(tmp_path)]
    where += ["--few", "--images-per-class", "6", "--epochs", "1"]
    steps = {"train": "msdnet,resnet32", "evaluate": "msdnet", "time": "resnet32"}
    for step, systems in [*steps.items(), ("train", "resnet32"), ("compare", "msdnet,resnet32")]:
        script.main([step, *where, "--systems", systems])
    ran = [words[0] for words in here]
    assert ran == ["train", "train", "evaluate", "evaluate", "compare"]  # nothing is trained twice
    assert json.loads((tmp_path / "msdnet" / "cpu_seconds.json").read_text()) == [1.5]
    with (tmp_path / "comparison" / "anytime.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["system"] for row in rows] == ["msdnet"] * 5 + ["resnet32"]
    assert [bool(row["milliseconds"]) for row in rows] == [False] * 5 + [True]
    with (tmp_path / "comparison" / "training.csv").open() as file:
        trained = {row["system"]: row for row in csv.DictReader(file)}
    parameters = sum(one.numel() for one in CifarResNet(32, 3).parameters())
    assert trained["resnet32"] == {
        "system": "resnet32", "parameters": str(parameters), "epochs": "1",
        "training_images": "18", "cpu_seconds": "2",
    }  # fmt: skip


def test_an_unknown_system_is_named(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.main(["train", "--data", "a", "--out", "b", "--systems", "sar,resnet31"])
    assert "'resnet31' is none of ranet" in capsys.readouterr().err

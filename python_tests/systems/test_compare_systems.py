"""benchmarks/compare_systems.py: what it runs, and what it says of each system's training."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from benchmark_scripts import load_script
from system_runs import Trained

from anchornet_ext import cli
from anchornet_ext._machine import using_threads
from anchornet_ext.models import count_macs
from anchornet_ext.systems import find_system, own_system_names
from anchornet_ext.training import command


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("compare_systems")


def test_every_system_takes_part(script: ModuleType) -> None:
    assert {entry.system for entry in script.ENTRIES.values()} == set(own_system_names())
    for entry in script.ENTRIES.values():
        stages = {stage.name for stage in find_system(entry.system).stages}
        assert set(entry.stages) == stages


def test_every_command_is_accepted(
    script: ModuleType, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []

    def begin(args: Any, system: Any, *rest: Any) -> None:
        begun.append(system.name)

    monkeypatch.setattr(command, "_train", begin)
    with using_threads():
        for name, entry in script.ENTRIES.items():
            assert cli.main(entry.command(photos, tmp_path / name, 1.0)) == 0, name
    assert begun == [entry.system for entry in script.ENTRIES.values()]


def test_scale_multiplies_the_epochs_and_keeps_the_warm_up_a_tenth(script: ModuleType) -> None:
    flags = script.Stage(4).flags("network", 5.0)
    assert flags[flags.index("--network-epochs") + 1] == "20"
    assert flags[flags.index("--network-warmup-epochs") + 1] == "2"
    assert "--network-warmup-epochs" not in script.Stage(4, script.TUNING).flags("network", 5.0)
    flags = script.Stage(4, other={"label-smoothing": None}).flags("network", 0.01)
    assert flags[flags.index("--network-epochs") + 1] == "1"
    assert "--network-label-smoothing" not in flags


@pytest.mark.parametrize("name", own_system_names())
def test_the_cost_of_training_is_of_every_stage(
    script: ModuleType, trained: Callable[[str], Trained], name: str
) -> None:
    one = trained(name)
    found = script.MACS_OF_STAGES[name](one.exits)
    assert set(found) == {stage.name for stage in one.system.stages}
    assert min(found.values()) > 0
    assert max(found.values()) >= 3 * one.exits.macs_per_exit()[0]


def test_the_cost_of_training_anchornet_is_its_networks(
    script: ModuleType, trained: Callable[[str], Trained]
) -> None:
    classifier: Any = trained("anchornet").exits
    networks = classifier.classifier
    side = networks.preprocessing.crop_size
    patch = networks.anchor.patch_size
    found = script.MACS_OF_STAGES["anchornet"](classifier)
    focus = count_macs(networks.focus, (3, patch, patch))
    anchor = count_macs(networks.anchor, (3, side, side))
    assert found["backbone"] == 3 * focus
    # The folded network that localises has no batch norm to count either.
    assert found["anchor"] == pytest.approx(3 * anchor, rel=0.02)
    assert found["focus"] == pytest.approx(anchor + 2 * 3 * focus, rel=0.02)


def test_trains_evaluates_and_compares(
    script: ModuleType, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip("matplotlib")
    ran: list[str] = []

    def here(words: Sequence[str]) -> None:
        ran.append(words[0])
        with using_threads():
            assert cli.main([*words]) == 0

    entries = {
        "one": script.Entry("plain", "--backbone cifar/resnet8", 32, {"network": script.Stage(2)}),
        "two": script.Entry(
            "cascade",
            "--small-backbone cifar/resnet8 --small-input 16 "
            "--large-backbone cifar/resnet8 --large-input 32",
            32,
            {"small": script.Stage(1), "large": script.Stage(1)},
        ),
    }
    monkeypatch.setattr(script, "ENTRIES", entries)
    monkeypatch.setattr(script, "anchornet", here)
    monkeypatch.setattr(script, "cpu_seconds", lambda: 1.5 * len(ran))
    where = ["--data", str(photos), "--out", str(tmp_path), "--systems", "one,two"]
    script.main(["calibrate", *where])
    assert ran == ["train"] * 2
    calibration = json.loads((tmp_path / "calibration.json").read_text())
    assert {name: set(stages) for name, stages in calibration.items()} == {
        "one": {"network"},
        "two": {"small", "large"},
    }
    assert min(seconds for stages in calibration.values() for seconds in stages.values()) > 0
    assert "one: " in capsys.readouterr().out
    ran.clear()
    for step in ("train", "train", "evaluate", "time", "compare"):
        script.main([step, *where])
    assert ran == ["train"] * 2 + ["evaluate"] * 4 + ["compare"]
    with (tmp_path / "comparison" / "training.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (tmp_path / "comparison" / "anytime.csv").open() as file:
        exits = {(row["system"], row["exit"]): row for row in csv.DictReader(file)}
    assert all(row["milliseconds"] for row in exits.values())
    assert [row["system"] for row in rows] == ["one", "two"]
    assert [row["cpu_seconds"] for row in rows] == ["2", "2"]
    assert rows[1]["epochs"] == "small 1 large 1"
    macs = float(exits["one", "1"]["macs"])
    assert float(rows[0]["training_macs"]) == 2 * 24 * 3 * macs
    # resnet8 twice, at a quarter of the cost and at all of it.
    assert float(rows[1]["training_macs"]) == 24 * 3 * float(exits["two", "2"]["macs"])
    assert 2 * int(rows[0]["parameters"]) == int(rows[1]["parameters"])


def test_calibration_is_of_a_few_photos_and_for_all(script: ModuleType, tmp_path: Path) -> None:
    for name, count in (("few", 2), ("many", 10)):
        (tmp_path / "all" / name).mkdir(parents=True)
        for index in range(count):
            (tmp_path / "all" / name / f"{index}.png").touch()
    for _ in range(2):  # the second time finds all links there
        assert script._link_photos(tmp_path / "all", tmp_path / "some", 4) == pytest.approx(12 / 6)
    linked = sorted(path.name for path in (tmp_path / "some" / "many").iterdir())
    assert linked == ["0.png", "1.png", "2.png", "3.png"]


def test_an_interrupted_training_goes_on_and_its_time_is_counted(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Sequence[str]] = []

    def interrupted(words: Sequence[str]) -> None:
        (tmp_path / "sar").mkdir(exist_ok=True)
        ran.append(words)
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "anchornet", interrupted)
    monkeypatch.setattr(script, "cpu_seconds", lambda: 2.0 * len(ran))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            script.main(["train", "--data", "DATA", "--out", str(tmp_path), "--systems", "sar"])
    assert [words.count("--resume") for words in ran] == [0, 1]
    assert (tmp_path / "sar" / "cpu_seconds.json").read_text() == "[2.0, 2.0]"


def test_what_another_process_trains_is_left_to_it(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    train = ["train", "--data", "DATA", "--out", str(tmp_path), "--systems"]

    def meanwhile(words: Sequence[str]) -> None:
        ran.append(words[2])
        if len(ran) == 1:
            script.main([*train, "sar,msdnet"])

    monkeypatch.setattr(script, "anchornet", meanwhile)
    script.main([*train, "sar"])
    assert ran == ["sar", "msdnet"]


def test_names_an_unknown_system(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.main(["train", "--data", "a", "--out", "b", "--systems", "plain,gnet"])
    assert "'gnet' is none of plain" in capsys.readouterr().err

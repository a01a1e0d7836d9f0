"""The room itself: which systems there are, whose flags are whose, and runs of before."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from command_line import Command
from system_runs import Trained, train_flags

from anchornet_ext import systems
from anchornet_ext._options import from_json, to_json
from anchornet_ext.systems import System, find_system, own_system_names, system_names
from anchornet_ext.systems.cascade import CascadeSystem
from anchornet_ext.systems.common.loading import load_system
from anchornet_ext.systems.common.network_system import NetworkSystem


def test_every_file_is_a_system() -> None:
    folder = Path(systems.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert files == set(own_system_names())
    assert {"anchornet", "gfnet", "ranet", "msdnet", "sar", "cascade"} <= files
    for name in files:
        assert isinstance(find_system(name), System)


def test_other_packages_can_add_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(CascadeSystem):
        name = "mine"

    class Point:
        name = "mine"

        def load(self) -> System:
            return Mine()

    monkeypatch.setattr(systems, "entry_points", lambda group: [Point()])
    assert system_names() == [*own_system_names(), "mine"]
    assert isinstance(find_system("mine"), Mine)
    with pytest.raises(ValueError, match=r"there is no system 'mime'.*did you mean mine"):
        find_system("mime")


@pytest.mark.parametrize(
    ("system", "flag", "owners"),
    [
        ("msdnet", "--num-patches", "anchornet"),
        ("anchornet", "--small-lr", "cascade"),
        ("cascade", "--penalty", "sar"),
    ],
)
def test_a_flag_of_another_system_is_named(
    photos: Path, tmp_path: Path, anchornet: Command, system: str, flag: str, owners: str
) -> None:
    run = tmp_path / "run"
    done = anchornet(*train_flags(find_system(system), photos, run, flag, "1"))
    assert done.returncode == 2
    assert f"{flag} is an option of --system {owners}" in done.stderr
    assert f"not of {system}" in done.stderr
    assert not run.exists()


def test_help_is_of_the_system_that_is_chosen(anchornet: Command) -> None:
    own, other = anchornet("train", "--help"), anchornet("train", "--system=sar", "--help")
    assert own.returncode == other.returncode == 0
    assert "--num-patches" in own.stdout
    assert "--penalty" not in own.stdout
    assert "--penalty" in other.stdout
    assert "--num-patches" not in other.stdout
    unknown = anchornet("train", "--system", "sra", "--data", "x", "--out", "y")
    assert unknown.returncode == 2
    assert "there is no system 'sra'" in unknown.stderr


#: The options of models that earlier versions saved, and how many numbers their weights are.
SAVED: dict[str, tuple[dict[str, Any], int]] = {
    "msdnet": (
        {
            "preset": "cifar-batch", "blocks": 3, "base": None, "step": None, "spacing": None,
            "channels": 4, "growth": 2, "factors": None, "bottlenecks": None, "reduction": 0.5,
            "stem": None, "schedule": "blocks",
        },
        538437,
    ),
    "ranet": (
        {
            "preset": "cifar-growing", "scales": [1, 2], "factors": [2, 1], "bottlenecks": [2, 1],
            "blocks": None, "more_blocks": None, "step": None, "spacing": None, "channels": 4,
            "growth": 4, "compress": None, "reduction": None, "stem": None, "schedule": "needed",
        },
        841309,
    ),
    "gfnet": (
        {
            "backbone": "timm/test_resnet", "num_exits": 3, "patch_size": 32, "classifier": "gru",
            "classifier_hidden": 16, "policy_hidden": 16, "encoder_lr": None,
            "regularisation": None, "policy_std": 0.1, "discount": 0.7,
        },
        761827,
    ),
    "plain": ({"backbone": "cifar/resnet8"}, 78268),
    "cascade": (
        {
            "small_backbone": "cifar/resnet8", "small_input": 16, "small_weights": None,
            "large_backbone": "cifar/resnet8", "large_input": 32, "large_weights": None,
            "pretrained": False,
        },
        156536,
    ),
    "sar": (
        {
            "backbone": "resnet20", "groups": 2, "stride": 2, "alpha": 2, "beta": 1, "cells": None,
            "target": 0.5, "penalty": 0.5,
        },
        262050,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAVED)
def test_saved_options_make_the_same_network(name: str) -> None:
    """A run of before has to find its weights' places in the network of today."""
    options, size = SAVED[name]
    system = find_system(name)
    assert isinstance(system, NetworkSystem)
    network = system.build(from_json(system.Options, options), 3)
    assert sum(value.numel() for value in network.state_dict().values()) == size
    kept = to_json(from_json(system.Options, options), start=False)
    assert kept == {key: options[key] for key in kept}


def test_a_run_belongs_to_one_system(
    photos: Path, trained: Callable[[str], Trained], anchornet: Command
) -> None:
    run = trained("plain").run
    other = anchornet(*train_flags(find_system("cascade"), photos, run, "--resume"))
    assert other.returncode == 2
    assert "was begun with system plain, not cascade" in other.stderr
    changed = train_flags(find_system("plain"), photos, run, "--resume")
    changed[changed.index("cifar/resnet8")] = "cifar/resnet20"
    again = anchornet(*changed)
    assert "was begun with backbone cifar/resnet8, not cifar/resnet20" in again.stderr


def test_runs_of_before_there_were_systems_go_on(
    photos: Path, tmp_path: Path, anchornet: Command
) -> None:
    """Their config.json and last.pt do not say "system", nor their optimiser at which rate."""
    run = tmp_path / "run"
    flags = train_flags(find_system("anchornet"), photos, run, "--stages", "anchor")
    short = [*flags]
    short[short.index("--anchor-epochs") + 1] = "2"
    assert anchornet(*short).returncode == 0
    path = run / "config.json"
    config = json.loads(path.read_text())
    del config["system"]
    path.write_text(json.dumps(config))
    state = torch.load(run / "anchor" / "last.pt", weights_only=True)
    del state["identity"]["system"]
    del state["identity"]["config"]["pad"]
    for group in state["optimizer"]["param_groups"]:
        del group["rate"]
    state["progress"]["epoch"] = 1  # one more epoch to do
    state["progress"]["rows"] = state["progress"]["rows"][:1]
    torch.save(state, run / "anchor" / "last.pt")
    done = anchornet(*short, "--resume")
    assert done.returncode == 0, done.stderr
    assert "resumed after epoch 1" in done.stderr
    assert json.loads(path.read_text())["system"] == "anchornet"


def test_an_unfinished_run_is_named(photos: Path, tmp_path: Path, anchornet: Command) -> None:
    run = tmp_path / "run"
    flags = train_flags(find_system("cascade"), photos, run, "--stages", "small")
    done = anchornet(*flags)
    assert "no model yet: large still to train" in done.stderr
    with pytest.raises(FileNotFoundError, match="a run that is not finished"):
        load_system(run, torch.device("cpu"))


@pytest.mark.parametrize("name", ["anchornet", "cascade", "gfnet", "plain"])
def test_published_weights_are_fetched_before_anything_is_trained(
    photos: Path, tmp_path: Path, anchornet: Command, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Stages that need none may come first, and take hours."""

    def fail(*_arguments: object, **_keywords: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    run = tmp_path / "run"
    flags = train_flags(find_system(name), photos, run, "--pretrained")
    tiny = {"cifar/resnet8", "timm/test_resnet"}
    refused = anchornet(*("resnet18" if flag in tiny else flag for flag in flags))
    assert refused.returncode == 2
    assert "could not load the pretrained weights of 'resnet18'" in refused.stderr
    assert "no route to host" in refused.stderr
    assert not run.exists()

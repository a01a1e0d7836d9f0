"""What every system must do, whoever wrote it: a new file in `systems/` is tested by its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from system_runs import Trained, train_flags
from torch.utils.flop_counter import FlopCounterMode

from anchornet_ext._options import flag_of, from_json, to_json
from anchornet_ext.evaluation.exit_values import exit_values
from anchornet_ext.inference import TwoStageClassifier
from anchornet_ext.policy.exit_policy import ExitPolicy
from anchornet_ext.policy.exit_table import ExitTable
from anchornet_ext.policy.outcome import apply_thresholds
from anchornet_ext.systems import find_system, own_system_names
from anchornet_ext.systems.common import storage
from anchornet_ext.systems.common.loading import install_policy, load_system
from anchornet_ext.systems.common.network_system import NetworkSystem
from anchornet_ext.training.loop import Trainer

every_system = pytest.mark.parametrize("name", own_system_names())
Get = Callable[[str], Trained]
#: How far a result may be from that of another batch, by rounding.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@every_system
def test_says_what_it_is(name: str) -> None:
    system = find_system(name)
    assert system.title
    assert system.summary
    assert len({stage.name for stage in system.stages}) == len(system.stages) > 0
    # What else is in a run's config.json, and on the command line.
    reserved = {"commands", "versions", "seed", "training_images", "validation_images", "stages"}
    reserved |= {"classes", "system", "preprocessing", "data", "out", "device", "workers"}
    assert not reserved & {field.name for field in fields(system.Options)}


@every_system
def test_a_finished_run_is_a_model(name: str, trained: Get, photos: Path) -> None:
    one = trained(name)
    exits = one.exits
    assert tuple(exits.class_names or ()) == ("ant", "bee", "cat")
    assert name in exits.name.lower()
    macs = exits.macs_per_exit()
    assert len(macs) == exits.num_exits >= 1
    assert macs[0] > 0
    assert all(a < b for a, b in pairwise(macs))
    images, _ = one.images(photos)
    logits = exits.anytime_logits(images[:2])
    assert logits.shape == (exits.num_exits, 2, 3)
    assert logits.dtype == torch.float32
    assert exits.anytime_logits(images[:0]).shape == (exits.num_exits, 0, 3)
    config = json.loads((one.run / "config.json").read_text())
    assert config["system"] == name
    assert not list(one.run.rglob("*.pkl"))
    saved = json.loads((one.run / "model" / "config.json").read_text())
    if isinstance(one.system, NetworkSystem):
        options = from_json(one.system.Options, saved["options"])
        assert to_json(options, start=False) == saved["options"]
        assert saved["macs_per_exit"] == list(macs)


@every_system
def test_an_interrupted_run_that_is_resumed_equals_an_uninterrupted_one(
    name: str, trained: Get, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    anchornet: Command,
) -> None:  # fmt: skip
    one = trained(name)
    interrupted: set[str] = set()
    save = Trainer._save

    def save_and_stop(self: Trainer) -> None:
        save(self)
        if self.progress.epoch == 1 and self.task.name not in interrupted:
            interrupted.add(self.task.name)
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_save", save_and_stop)
    run = tmp_path / "run"
    stages = one.system.stages_to_run(
        from_json(
            one.system.Options,
            {
                key: value
                for key, value in json.loads((one.run / "config.json").read_text()).items()
                if key in {field.name for field in fields(one.system.Options)}
            },
        )
    )
    statuses = [anchornet(*train_flags(one.system, photos, run)).returncode]
    while statuses[-1] == 130:
        done = anchornet(*train_flags(one.system, photos, run, "--resume"))
        statuses.append(done.returncode)
    assert statuses == [130] * len(stages) + [0]
    expected, found = (sorted(path.rglob("*.safetensors")) for path in (one.run, run))
    assert [p.relative_to(one.run) for p in expected] == [p.relative_to(run) for p in found]
    for first, second in zip(expected, found, strict=True):
        assert_same_tensors(load_file(first), load_file(second))
    for stage in stages:
        states = [torch.load(p / stage / "last.pt", weights_only=True) for p in (one.run, run)]
        assert_same_tensors(states[0]["model"], states[1]["model"])
        momenta = [
            {
                f"{i} {key}": value
                for i, slot in state["optimizer"]["state"].items()
                for key, value in slot.items()
                if isinstance(value, torch.Tensor)
            }
            for state in states
        ]
        assert momenta[0]
        assert_same_tensors(*momenta)


def assert_same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


@every_system
def test_a_model_survives_save_and_load_bit_for_bit(
    name: str, trained: Get, tmp_path: Path
) -> None:
    one = trained(name)
    folder = one.run / "model"
    if isinstance(one.system, NetworkSystem):
        network, saved = one.system.load_network(folder)
        storage.save(tmp_path, network, saved)
    else:
        TwoStageClassifier.from_pretrained(folder, fold=False).save_pretrained(tmp_path)
    files = sorted(path.name for path in folder.iterdir())
    assert files == sorted(path.name for path in tmp_path.iterdir())
    assert any(file.endswith(".safetensors") for file in files)
    for file in files:
        assert (folder / file).read_bytes() == (tmp_path / file).read_bytes()


@every_system
def test_anytime_logits_are_what_early_exit_finds(name: str, trained: Get, photos: Path) -> None:
    one = trained(name)
    images, labels = one.images(photos)
    logits = one.exits.anytime_logits(images)
    values = exit_values(logits, labels)
    costs = torch.tensor(one.exits.macs_per_exit())
    for step in range(1, one.exits.num_exits + 1):
        found = one.exits.classify(images, exit_at=step)
        torch.testing.assert_close(found.probabilities, logits[step - 1].softmax(1), **CLOSE)
        sure = values["confidence"][:, step - 1] - 1 / 3 > 1e-4  # else any class may be first
        assert (found.label.numpy() == values["prediction"][:, step - 1])[sure].all()
        assert (found.exit_step == step).all()
        if not one.exits.costs_vary:
            assert (found.macs == costs[step - 1]).all()


@every_system
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_image_depends_on_the_others(
    name: str, trained: Get, photos: Path, data: st.DataObject
) -> None:
    """Batches of any images in any order, with any thresholds: each result is that of the table."""
    one = trained(name)
    images, labels = one.images(photos)
    values = whole_table(one, images, labels)
    confidence = values["confidence"]
    chosen = data.draw(st.lists(st.integers(0, len(images) - 1), max_size=8), "images")
    thresholds = []
    for t in range(one.exits.num_exits - 1):
        known = np.sort(confidence[:, t])
        # Between two confidences that are apart: at one, rounding would decide.
        apart = np.flatnonzero(np.diff(known) > 2e-4)
        assert len(apart) >= 3, "the tiny networks are all but undecided: nothing is tested here"
        between = [float(known[place : place + 2].mean()) for place in apart]
        thresholds.append(data.draw(st.sampled_from([-1.0, *between, 1.0]), f"threshold {t + 1}"))
    expected = apply_thresholds(confidence[chosen], thresholds) if chosen else np.empty(0, int)
    found = one.exits.classify(images[chosen], policy=ExitPolicy(tuple(thresholds)))
    assert (found.exit_step.numpy() - 1).tolist() == expected.tolist()
    logits = values["logits"][expected, chosen]
    torch.testing.assert_close(
        found.probabilities, torch.from_numpy(logits).softmax(1).to(found.probabilities), **CLOSE
    )
    costs = values["macs"][chosen, expected]
    assert found.macs.tolist() == costs.tolist()


_TABLES: dict[str, dict[str, Any]] = {}


def whole_table(one: Trained, images: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """All images at all exits, once for each system."""
    if one.system.name not in _TABLES:
        if one.exits.costs_vary:
            logits, macs = one.exits.logits_and_costs(images)  # type: ignore[attr-defined]
        else:
            logits = one.exits.anytime_logits(images)
            macs = torch.tensor(one.exits.macs_per_exit()).expand(len(images), -1)
        values: dict[str, Any] = exit_values(logits, labels)
        _TABLES[one.system.name] = {**values, "logits": logits.numpy(), "macs": macs.numpy()}
    return _TABLES[one.system.name]


@every_system
def test_leaving_earlier_computes_less(name: str, trained: Get, photos: Path) -> None:
    one = trained(name)
    images = one.images(photos)[0][:3]
    counted = []
    for step in range(1, one.exits.num_exits + 1):
        with FlopCounterMode(display=False) as counter:
            one.exits.classify(images, exit_at=step)
        counted.append(counter.get_total_flops())
    assert all(a < b for a, b in pairwise(counted))
    costs = [3 * 2 * macs for macs in one.exits.macs_per_exit()]
    # The package's own operators are not counted.
    assert all(found <= cost for found, cost in zip(counted, costs, strict=True)) or (
        one.exits.costs_vary
    )


@every_system
def test_evaluate_finds_out_which_system_it_is(
    name: str, trained: Get, photos: Path, tmp_path: Path, anchornet: Command
) -> None:
    one = trained(name)
    out = tmp_path / "report"
    done = anchornet(
        *("evaluate", "--model", one.run, "--data", photos / "val", "--out", out),
        *("--workers", 0, "--threads", 1, "--no-report", "--no-latency", "--batch-size", 8),
    )
    assert done.returncode == 0, done.stderr
    table = ExitTable.load(out / "exits.npz")
    values = whole_table(one, *one.images(photos))
    assert table.num_images == 21
    np.testing.assert_allclose(table.confidence, values["confidence"], rtol=1e-3, atol=1e-4)
    assert table.cost is not None
    np.testing.assert_allclose(table.cost, values["macs"].mean(axis=0))
    assert (table.image_cost is not None) == one.exits.costs_vary
    assert table.metadata["system"] == one.exits.name


@every_system
def test_a_policy_can_be_installed(name: str, trained: Get, photos: Path, tmp_path: Path) -> None:
    one = trained(name)
    shutil.copytree(one.run / "model", tmp_path / "model")
    count = one.exits.num_exits
    policy = ExitPolicy((0.5,) * (count - 1), (2.0,) * count)
    install_policy(tmp_path, policy)
    found = load_system(tmp_path, torch.device("cpu"))
    assert found.policy == policy
    # All runs' models are in a folder of one name: two of them would be called alike.
    assert found.name == f"{find_system(name).title} ({tmp_path.name})"
    assert load_system(tmp_path / "model", torch.device("cpu")).name == found.name
    assert found.checksum == one.exits.checksum
    # Told where to leave, an image still leaves with the policy's temperatures.
    images = one.images(photos)[0][:4]
    logits = found.anytime_logits(images)
    for step in range(1, count + 1):
        sent = found.classify(images, exit_at=step)
        torch.testing.assert_close(sent.probabilities, (logits[step - 1] / 2).softmax(1), **CLOSE)
    with pytest.raises(ValueError, match="exits need"):
        install_policy(tmp_path, ExitPolicy((0.5,) * one.exits.num_exits))


def bad_values(name: str) -> list[tuple[str, str]]:
    """A value that no system can mean, for each of its options."""
    bad = []
    for field in fields(find_system(name).Options):
        if isinstance(field.default, bool):
            continue
        convert = field.metadata["convert"]
        number = convert in (int, float) or isinstance(field.default, (int, float))
        value = "-1" if number or isinstance(field.default, tuple) else "/nowhere/nothing"
        bad.append((flag_of(field.name), value))
    return bad


@pytest.mark.parametrize(
    ("name", "flag", "value"),
    [(name, *bad) for name in own_system_names() for bad in bad_values(name)],
)
def test_a_bad_option_is_named_before_any_work(
    name: str, flag: str, value: str, photos: Path, tmp_path: Path, anchornet: Command
) -> None:
    run = tmp_path / "run"
    done = anchornet(*train_flags(find_system(name), photos, run, f"{flag}={value}"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert value in done.stderr
    assert not run.exists()


@every_system
def test_a_damaged_model_is_named(name: str, trained: Get, tmp_path: Path) -> None:
    one = trained(name)
    folder = tmp_path / "model"
    shutil.copytree(one.run / "model", folder)
    weights = next(folder.glob("*.safetensors"))
    blob = bytearray(weights.read_bytes())
    blob[-1] ^= 1
    weights.write_bytes(blob)
    with pytest.raises(ValueError, match=weights.name):
        load_system(folder, torch.device("cpu"))
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=weights.name):
        load_system(folder, torch.device("cpu"))
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json"):
        load_system(folder, torch.device("cpu"))

"""`anchornet calibrate` as its users run it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Command, in_own_process, in_this_process
from synthetic import WITHOUT_GRID, synthetic_table

from anchornet_ext.inference import TwoStageClassifier
from anchornet_ext.inference.storage import checksum
from anchornet_ext.models import AnchorNet, build_backbone
from anchornet_ext.policy import quantities
from anchornet_ext.policy.calibration import Goal, Recipe, cross_fit, fit_policy, policy_outcome
from anchornet_ext.policy.exit_policy import ExitPolicy
from anchornet_ext.policy.exit_table import ExitTable


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    with in_this_process(capsys, "calibrate") as command:
        yield command


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "report" / "exits.npz"
    path.parent.mkdir()
    synthetic_table(
        200, milliseconds=np.array([1.0, 4.0, 5.0]), metadata={"system": "AnchorNet (mine)"}
    ).save(path)
    return path


def published(path: Path, exits: int = 3) -> Path:
    """A table of confidence and correctness only, as papers publish them."""
    full = synthetic_table(100, evidence=(1.0,) * exits, loudness=(1.0,) * exits)
    np.savez(path, confidence=full.confidence, correct=full.correct)
    return path


def test_a_report_folder_and_a_budget(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "policy.json"
    done = in_own_process("calibrate", table.parent, "--budget", "1.8G", "--out", out, "--seed", 1)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    policy = ExitPolicy.load(out)
    result = policy_outcome(ExitTable.load(table), policy)
    assert result.cost <= 1.8e9
    lines = done.stdout.splitlines()
    expected = next(line for line in lines if line.startswith("expected, held out"))
    flattering = next(line for line in lines if line.startswith("on the table itself"))
    about: dict[str, Any] = dict(policy.about)
    assert f"{100 * about['expected']['accuracy']:.2f} ± " in expected
    assert f"{about['expected']['cost'] / 1e9:.3f} ± " in expected
    assert "not fitted on" in expected
    assert f"{100 * result.accuracy:.2f} %" in flattering
    assert f"{result.cost / 1e9:.3f} GMACs" in flattering
    assert about["system"] == "AnchorNet (mine)"
    assert about["goal"] == {"budget": 1.8e9}
    assert about["table"] == "report"
    assert str(tmp_path) not in json.dumps(about)
    assert lines[-1] == f"wrote {out}"


def test_an_accuracy_or_a_time(table: Path, tmp_path: Path, run: Command) -> None:
    out = tmp_path / "policy.json"
    status, text, err = run(table, "--accuracy", "60%", "--out", out)
    assert status == 0, err
    assert policy_outcome(ExitTable.load(table), ExitPolicy.load(out)).accuracy >= 0.6
    assert "GMACs" in text
    status, text, err = run(table, "--latency", "2ms", "--out", out, "--method", "geometric")
    assert status == 0, err
    policy = ExitPolicy.load(out)
    assert policy_outcome(ExitTable.load(table), policy, "milliseconds").cost <= 2
    assert policy.about["unit"] == "milliseconds"
    assert "ms" in text
    assert "MACs" not in text


def test_rules_as_asked_for(table: Path, tmp_path: Path, run: Command) -> None:
    out = tmp_path / "policy.json"
    arguments = (table, "--budget", "2e9", "--out", out)
    run(*arguments, "--answer", "surest", "--temperatures", "on")
    policy = ExitPolicy.load(out)
    assert policy.answer == "surest"
    assert policy.temperatures is not None
    _, text, _ = run(*arguments, "--answer", "last", "--temperatures", "off")
    assert (ExitPolicy.load(out).answer, ExitPolicy.load(out).temperatures) == ("last", None)
    assert "temperatures  none\n" in text
    assert "answer        last\n" in text


def test_a_published_table_needs_its_costs(tmp_path: Path, run: Command) -> None:
    path = published(tmp_path / "published.npz", exits=4)
    status, text, err = run(path, "--budget", "1G", "--out", tmp_path / "p.json")
    assert (status, text) == (2, "")
    assert "give the multiply-adds of its 4 exits with --cost" in err
    costs = ("--cost", "0.5G,1G,1500M")
    status, _, err = run(path, "--budget", "1G", *costs)
    assert status == 2
    assert "--cost has 3 values for 4 exits (--exits N takes the first N only)" in err
    status, text, err = run(
        path, "--budget", "1G", *costs, "--exits", 3, "--out", tmp_path / "p.json"
    )
    assert status == 0, err
    assert "none (the table has no temperature grid)" in text
    policy = ExitPolicy.load(tmp_path / "p.json")
    assert policy.num_exits == 3
    assert policy.about["costs"] == [0.5e9, 1e9, 1.5e9]


def test_a_curve(table: Path, tmp_path: Path, run: Command) -> None:
    out = tmp_path / "curve.csv"
    status, _, err = run(table, "--budget", "2G", "--temperatures", "off", "--curve", out)
    assert status == 0, err
    with out.open() as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert len(rows) == 40
    assert rows[0]["budget"] == 1e9
    assert rows[-1]["budget"] == 3e9
    loaded = ExitTable.load(table)
    for row in rows[::13]:
        assert row["on_table_cost"] <= row["budget"] * (1 + 1e-9)
        assert row["held_out_cost"] < row["budget"] + 0.2e9
        assert 0 < row["held_out_accuracy_error"] < 0.1
        policies = [
            ExitPolicy((row["threshold_1"], row["threshold_2"]), None, answer)
            for answer in ("last", "surest")
        ]
        assert row["on_table_accuracy"] in [
            pytest.approx(policy_outcome(loaded, policy).accuracy) for policy in policies
        ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    name = "squeezenet1_1"
    classifier = TwoStageClassifier(
        AnchorNet(2), build_backbone(name, 2), build_backbone(name, 2),
        num_patches=2, glance_name=name, focus_name=name, thresholds=(0.5, 0.5),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    classifier.save_pretrained(folder)
    return folder


def test_a_policy_becomes_the_models_own(table: Path, model: Path, run: Command) -> None:
    weights = {path.name: path.read_bytes() for path in model.glob("*.safetensors")}
    config = json.loads((model / "config.json").read_text())
    # As a version before policies has saved it.
    del config["policy"]
    old = config | {"format_version": 1, "thresholds": [0.5, 0.5]}
    (model / "config.json").write_text(json.dumps(old))
    status, text, err = run(table, "--budget", "2G", "--install", model, "--answer", "surest")
    assert status == 0, err
    assert f"the model in {model} uses it from now on" in text
    loaded = TwoStageClassifier.from_pretrained(model)
    assert loaded.policy is not None
    assert loaded.policy.answer == "surest"
    assert loaded.policy.about["goal"] == {"budget": 2e9}
    after = json.loads((model / "config.json").read_text())
    assert {key for key in after if after[key] != config.get(key)} == {"policy"}
    assert {path.name: path.read_bytes() for path in model.glob("*.safetensors")} == weights


def test_a_model_of_other_exits_is_left_alone(tmp_path: Path, model: Path, run: Command) -> None:
    path = published(tmp_path / "t.npz", exits=4)
    before = (model / "config.json").read_bytes()
    status, text, err = run(
        path, "--cost", "1,2,3,4", "--budget", "2", "--install", model, "--out", tmp_path / "p"
    )
    assert (status, text) == (2, "")
    assert "this model has 3 exits, not 4" in err
    assert (model / "config.json").read_bytes() == before
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "0.5G"], "budget of 500M cannot be met"),
        (["--accuracy", "99.99%"], "accuracy 0.9999 is out of reach"),
        (["--budget", "2G", "--accuracy", "0.5"], "not allowed with"),
        ([], "one of the arguments --budget --accuracy --latency is required"),
        (["--budget", "fast"], "'fast' is no number of multiply-adds"),
        (["--accuracy", "74"], "did you mean 74%?"),
        (["--latency", "3"], "'3' is no time with its unit"),
        (["--budget", "2G", "--exits", "4"], "--exits 4: "),
        (["--budget", "2G", "--exits", "1"], "only one exit"),
        (["--budget", "2G", "--cost", "1G,2G"], "--cost has 2 values for 3 exits"),
        (["--budget", "2G", "--cost", "3G,2G,1G"], "increase from exit to exit"),
        (["--budget", "2G", "--answer", "first"], "invalid choice"),
        (["--budget", "2G", "--seed", "-1"], "argument --seed: '-1' is not a number"),
        (["--budget", "2G", "--out", "no/such/folder/p.json"], "there is no folder"),
        (["--budget", "2G", "--curve", "no/such/folder/c.csv"], "there is no folder"),
        (["--budget", "2G", "--install", "nowhere"], "nowhere is not a saved model"),
    ],
)
def test_wrong_arguments_are_told(
    table: Path, run: Command, arguments: list[str], message: str
) -> None:
    status, out, err = run(table, *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_tables_that_are_none(tmp_path: Path, run: Command) -> None:
    (tmp_path / "text.npz").write_text("no table")
    full = synthetic_table(100, **WITHOUT_GRID)
    np.savez(tmp_path / "half.npz", confidence=full.confidence)
    for path, message in (
        (tmp_path, "has no exits.npz: an exit table is what `anchornet evaluate` writes"),
        (tmp_path / "gone.npz", "there is no file"),
        (tmp_path / "text.npz", "text.npz"),
        (tmp_path / "half.npz", "half.npz is not a valid exit table: it has no array correct"),
    ):
        status, out, err = run(path, "--budget", "2G")
        assert (status, out) == (2, "")
        assert message in err


def test_times_need_to_have_been_measured(tmp_path: Path, run: Command) -> None:
    synthetic_table(100).save(tmp_path / "t.npz")
    status, _, err = run(tmp_path / "t.npz", "--latency", "3ms")
    assert status == 2
    assert "has no measured times, which --latency needs: collect it on the machine" in err


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (quantities.macs, "1.25G", 1.25e9),
        (quantities.macs, " 800 MMACs", 8e8),
        (quantities.macs, "1.25e9", 1.25e9),
        (quantities.macs, "3", 3.0),
        (quantities.share, "0.74", 0.74),
        (quantities.share, "74.5 %", 0.745),
        (quantities.share, "1", 1.0),
        (quantities.milliseconds, "3ms", 3.0),
        (quantities.milliseconds, "250us", 0.25),
        (quantities.milliseconds, "0.02 s", 20.0),
    ],
)
def test_amounts(parse: Callable[[str], float], text: str, value: float) -> None:
    assert parse(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("parse", "texts"),
    [
        (quantities.macs, ["", "G", "-1G", "0", "nan", "inf", "1.2.3", "1GG", "1 apple"]),
        (quantities.share, ["", "%", "0", "-0.1", "101%", "1e9", "nan%", "half"]),
        (quantities.milliseconds, ["", "ms", "3", "-3ms", "nanms", "infs", "3min"]),
    ],
)
def test_what_is_no_amount(parse: Callable[[str], float], texts: list[str]) -> None:
    for text in texts:
        with pytest.raises(ValueError, match=r"is no|above 1"):
            parse(text)


def test_the_curve_is_as_held_out_as_the_policy(tmp_path: Path, run: Command) -> None:
    """The answer rule is chosen on each half, not on the images that it is measured on."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        shape = (100, 3)
        loaded = ExitTable(
            rng.random(shape, np.float32), rng.random(shape) < 0.5, np.array([1e9, 2e9, 3e9])
        )
        recipe = Recipe(Goal(budget=3e9), temperatures="off")
        if fit_policy(loaded, recipe).answer == "surest":
            break
    loaded.save(tmp_path / "t.npz")
    curve = tmp_path / "c.csv"
    status, text, err = run(
        tmp_path / "t.npz", "--budget", "3G", "--curve", curve, "--temperatures", "off"
    )
    assert status == 0, err
    assert "answer        surest" in text
    with open(curve) as file:
        *_, dearest = csv.DictReader(file)
    expected = cross_fit(loaded, recipe)
    assert float(dearest["budget"]) == 3e9
    assert float(dearest["held_out_accuracy"]) == pytest.approx(expected.accuracy)
    assert float(dearest["held_out_cost"]) == pytest.approx(expected.cost)


def test_a_table_of_another_model_is_not_installed(
    tmp_path: Path, model: Path, run: Command
) -> None:
    path = tmp_path / "t.npz"
    config = json.loads((model / "config.json").read_text())
    for measured, message in ((checksum(config), ""), ("0123", "the table is of another model")):
        metadata = {"system": "AnchorNet (other)", "checksum": measured}
        synthetic_table(200, metadata=metadata).save(path)
        before = (model / "config.json").read_bytes()
        status, _, err = run(path, "--budget", "2G", "--install", model)
        assert status == (2 if message else 0), err
        assert message in err
        assert ((model / "config.json").read_bytes() == before) == bool(message)
    # A table that was cut is one of another model, by intention.
    status, _, err = run(path, "--budget", "2G", "--install", model, "--exits", "3")
    assert status == 0, err

"""What `anchornet evaluate` makes of an exit table: points, times, and the page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from command_line import Command
from evaluation_cases import BACKBONE, NAMES, SIDE, save_photos

from anchornet_ext import TwoStageClassifier, cli
from anchornet_ext.evaluation import wall_clock
from anchornet_ext.evaluation.latency import LatencyReport
from anchornet_ext.evaluation.operating import decides_as, default_budgets, fitted_point
from anchornet_ext.inference.storage import read_config
from anchornet_ext.models import build_backbone
from anchornet_ext.policy.calibration import Goal, Recipe, fit_policy
from anchornet_ext.policy.exit_policy import ExitPolicy
from anchornet_ext.policy.exit_table import ExitTable
from anchornet_ext.policy.outcome import outcome

QUICK = ("--workers", 0, "--threads", 1, "--batch-size", 16)


def run(*arguments: object) -> int:
    return cli.main(["evaluate", *map(str, arguments)])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """84 photos: enough for thresholds to be fitted on halves of halves."""
    folder = tmp_path_factory.mktemp("many") / "tiny photos"
    save_photos(folder, dict.fromkeys(NAMES, 21))
    return folder


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The evaluation of a plain network on the same photos."""
    folder = tmp_path_factory.mktemp("plain")
    torch.manual_seed(0)
    weights = folder / "plain.safetensors"
    safetensors.torch.save_file(build_backbone(BACKBONE, len(NAMES)).state_dict(), weights)
    status = run(
        "--backbone", BACKBONE, "--weights", weights, "--image-size", SIDE, "--resize-size", 120,
        "--data", data, "--out", folder / "report", *QUICK, "--no-report",
    )  # fmt: skip
    assert status == 0
    return folder / "report"


@pytest.fixture(scope="module")
def out(model: Path, data: Path, plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation with everything that there is. Not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    ExitPolicy((0.6, 0.7), (1.0, 2.0, 0.5), "surest").save(folder / "mine.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wall_clock, "REPEATS", 1)
        status = run(
            "--model", model, "--data", data, "--out", folder / "report", *QUICK, "--plain", plain,
            "--policy", folder / "mine.json", "--operating-points", "60M,0.1G",
            "--latency-images", 16,
        )  # fmt: skip
    assert status == 0
    return folder / "report"


def test_the_page_and_its_figures(out: Path) -> None:
    page = (out / "report.html").read_text()
    for words in ("on tiny photos", f"{BACKBONE} at {SIDE}", "budget 60.0 MMACs", "mine"):
        assert words in page
    assert 'src="http' not in page  # it needs nothing but itself
    names = {path.name for path in (out / "figures").iterdir()}
    assert {"accuracy_over_macs.png", "anytime.png", "speed_up.png"} <= names
    assert any(name.startswith("gallery_exit_") for name in names)


def test_operating_points_are_measured_on_other_images(out: Path) -> None:
    table = ExitTable.load(out / "exits.npz")
    summary = json.loads((out / "summary.json").read_text())
    points = {point["name"]: point for point in summary["operating_points"]}
    assert list(points) == ["mine", "budget 60.0 MMACs", "budget 100 MMACs"]
    mine = points.pop("mine")
    assert mine["held_out"] is None
    applied = table.with_temperatures([1.0, 2.0, 0.5]).with_answer("surest")
    expected = outcome(applied, [0.6, 0.7])
    assert mine["accuracy"] == pytest.approx(expected.accuracy)
    assert mine["macs"] == pytest.approx(expected.cost)
    for (name, point), budget in zip(points.items(), (60e6, 100e6), strict=True):
        assert point["held_out"] is True
        direct = fitted_point(table, budget)
        assert point["accuracy"] == pytest.approx(float(direct.accuracy.value)), name
        assert sum(point["share"]) == pytest.approx(1)
        # The policy to use is the one that calibrate makes of all images.
        policy = ExitPolicy.from_dict(point["policy"])
        recipe = Recipe(Goal(budget=budget), temperatures="off")
        assert decides_as(policy, fit_policy(table, recipe))
    assert {curve["unit"] for curve in summary["budgeted"]} == {"macs", "milliseconds"}
    assert {curve["method"] for curve in summary["budgeted"]} == {"search", "geometric"}


def test_held_out_accuracy_does_not_flatter() -> None:
    """Of confidences that say nothing, thresholds fitted on the images measured look good."""
    shape = (120, 4)
    same, held_out = [], []
    for seed in range(12):  # a single table may turn out either way
        rng = np.random.default_rng(seed)
        table = ExitTable(
            rng.random(shape, np.float32), rng.random(shape) < 0.5, np.array([1.0, 2.0, 3.0, 4.0])
        )
        point = fitted_point(table, 3.0)
        answered = table.with_answer(point.policy.answer)
        same.append(outcome(answered, point.policy.thresholds).accuracy)
        held_out.append(float(point.accuracy.value))
        assert point.macs is not None
        assert point.macs < 3.3
    assert np.mean(same) > 0.55
    assert abs(np.mean(held_out) - 0.5) < 0.025


def test_times(out: Path, plain: Path) -> None:
    report = LatencyReport.load(out / "latency.json")
    assert report.passes is not None
    assert report.runs is not None
    table = ExitTable.load(out / "exits.npz")
    np.testing.assert_allclose(table.costs("milliseconds"), report.passes.milliseconds_per_exit)
    kinds = {time.name: time.kind for time in report.runs.times}
    points = ("mine", "budget 60.0 MMACs", "budget 100 MMACs")
    assert kinds == {
        **{f"exit {t}": "exit" for t in (1, 2, 3)},
        **dict.fromkeys(points, "point"),
        **{f"{point}, streamed": "stream" for point in points},
        f"{BACKBONE} at {SIDE}": "plain",
    }
    assert report.runs.setting["images"] == "16"
    (whole,) = ExitTable.load(plain / "exits.npz").costs("milliseconds")
    assert whole > 0


def test_calibrate_takes_the_folder(
    out: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """evaluate -> calibrate -> predict, as the README has it."""
    policy = tmp_path / "policy.json"
    assert cli.main(["calibrate", str(out), "--budget", "80M", "--out", str(policy)]) == 0
    exits = 1 + int(read_config(model)["num_patches"])
    assert ExitPolicy.load(policy).num_exits == exits
    capsys.readouterr()


def test_other_images_and_lost_weights_are_said(
    model: Path, data: Path, plain: Path, tmp_path: Path, evaluate: Command
) -> None:
    weights = plain.parent / "plain.safetensors"
    content = weights.read_bytes()
    try:
        weights.write_bytes(content[:-4] + b"\0\0\0\0")
        done = evaluate(
            "--model", model, "--data", data, "--limit", 4, "--out", tmp_path / "out",
            "--plain", plain / "exits.npz", *QUICK, "--no-report",
        )  # fmt: skip
    finally:
        weights.write_bytes(content)
    assert done.returncode == 0, done.stderr
    assert "measured on other images than these (84)" in done.stderr
    assert "not timed: its weights are not the ones that were evaluated" in done.stderr
    assert "There is no budgeted curve: thresholds are fitted on one half" in done.stderr
    assert "There are no fitted operating points: 4 images are too few" in done.stderr


def test_resume_measures_times_that_are_missing(
    model: Path, data: Path, tmp_path: Path, evaluate: Command
) -> None:
    common = ("--model", model, "--data", data, "--limit", 4, "--out", tmp_path / "out", *QUICK)
    assert evaluate(*common, "--no-report", "--no-latency").returncode == 0
    before = ExitTable.load(tmp_path / "out" / "exits.npz")
    assert before.milliseconds is None
    done = evaluate(*common, "--no-report", "--resume", "--latency-images", 2)
    assert done.returncode == 0, done.stderr
    after = ExitTable.load(tmp_path / "out" / "exits.npz")
    assert after.milliseconds is not None
    assert after.scaled_nll is not None
    np.testing.assert_array_equal(before.confidence, after.confidence)


def test_default_budgets() -> None:
    assert default_budgets([100.0, 200.0, 300.0]) == (120.0, 150.0, 200.0)


def test_temperatures_of_mean_probabilities_are_refused(
    model: Path, data: Path, tmp_path: Path, evaluate: Command
) -> None:
    """Each would change the sums of all later exits, which one table cannot hold."""
    other = shutil.copytree(model, tmp_path / "model")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "criterion": "probabilities"}))
    ExitPolicy((0.5, 0.5), (1.0, 2.0, 1.0)).save(tmp_path / "policy.json")
    done = evaluate(
        "--model", other, "--data", data, "--out", tmp_path / "out", *QUICK,
        "--policy", tmp_path / "policy.json",
    )  # fmt: skip
    assert done.returncode == 2
    assert "has temperatures, and under the model's criterion 'probabilities'" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--operating-points", "much"], "'much' is no number of multiply-adds"),
        (["--operating-points", "1k"], "a budget of 1k multiply-adds is below the"),
        (["--policy", "gone"], "No such file"),
        (["--policy", "NOTHING"], "is not JSON"),
        (["--policy", "TWO"], "3 exits need 2 thresholds, got 1"),
        (["--policy", "ODD"], "has the temperature 1.1, which is not on the table's grid"),
        (
            ["--policy", "EVEN", "--no-temperatures"],
            "--no-temperatures leaves them out of the table",
        ),
        (["--policy", "EVEN", "--policy", "EVEN"], "two files are called 'even'"),
        (["--plain", "gone"], "--plain: there is no file gone"),
        (["--plain", "EMPTY"], "has no exits.npz"),
        (["--plain", "NOTHING"], "is not a .npz file"),
        (["--plain", "COSTLESS"], "does not say what the network costs"),
        (["--latency-images", "0"], "'0' is not a number from 1 on"),
    ],
)
def test_bad_input_is_named_before_any_work(
    model: Path,
    data: Path,
    tmp_path: Path,
    evaluate: Command,
    arguments: list[str],
    message: str,
) -> None:
    names = {"NOTHING", "TWO", "ODD", "EVEN", "EMPTY"}
    places = {name: tmp_path / name.lower() for name in names}
    places["COSTLESS"] = tmp_path / "costless.npz"
    places["NOTHING"].write_text("nothing")
    ExitPolicy((0.5,)).save(places["TWO"])
    ExitPolicy((0.5, 0.5), (1.0, 1.1, 1.0)).save(places["ODD"])
    ExitPolicy((0.5, 0.5), (1.0, 2.0, 1.0)).save(places["EVEN"])
    places["EMPTY"].mkdir()
    ExitTable(np.ones((2, 1), np.float32), np.ones((2, 1), bool)).save(places["COSTLESS"])
    words = [places.get(word, word) for word in arguments]
    done = evaluate("--model", model, "--data", data, "--out", tmp_path / "out", *QUICK, *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_policy_of_the_model_that_the_table_cannot_tell_is_a_note(
    model: Path, data: Path, tmp_path: Path
) -> None:
    """Nobody asked for it, and `classify` takes it: no reason to refuse the evaluation."""
    classifier = TwoStageClassifier.from_pretrained(model, fold=False)
    classifier.policy = ExitPolicy((0.5, 0.5), (1.0, 1.1, 1.0))
    classifier.save_pretrained(tmp_path / "odd")
    status = run(
        "--model", tmp_path / "odd", "--data", data, "--out", tmp_path / "out", *QUICK,
        "--no-latency", "--no-report", "--limit", 42,
    )  # fmt: skip
    assert status == 0
    said = (tmp_path / "out" / "log.txt").read_text()
    assert "Not measured: the model's own policy has the temperature 1.1" in said


def test_matplotlib_is_missed_before_any_work(
    model: Path, data: Path, tmp_path: Path, evaluate: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    done = evaluate("--model", model, "--data", data, "--out", tmp_path / "out", *QUICK)
    assert done.returncode == 2
    assert "figures need matplotlib" in done.stderr
    assert not (tmp_path / "out").exists()

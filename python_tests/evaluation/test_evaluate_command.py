"""`anchornet evaluate` as its users run it."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from command_line import Command, environment, in_own_process
from evaluation_cases import (
    BACKBONE,
    NAMES,
    SIDE,
    save_model,
    save_photos,
)

from anchornet_ext import cli
from anchornet_ext.data.photos import read_photo
from anchornet_ext.data.transforms import Preprocessing
from anchornet_ext.inference import TwoStageClassifier
from anchornet_ext.inference.storage import install_policy
from anchornet_ext.models import build_backbone
from anchornet_ext.policy.exit_policy import ExitPolicy
from anchornet_ext.policy.exit_table import ExitTable
from anchornet_ext.policy.outcome import apply_thresholds

QUICK = ("--workers", 0, "--threads", 1, "--batch-size", 4, "--no-latency", "--no-report")


@pytest.fixture(scope="module")
def report(model: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation in one process and one go. Not to be changed."""
    out = tmp_path_factory.mktemp("reports") / "report"
    arguments = ("--model", model, "--data", photos, "--out", out, *QUICK, "--chunk-size", 4)
    assert cli.main(["evaluate", *map(str, arguments)]) == 0
    return out


def test_the_table_is_what_the_model_does(report: Path, model: Path, photos: Path) -> None:
    """Image by image: every photo read, classified with real early exit, and compared."""
    table = ExitTable.load(report / "exits.npz")
    loaded = TwoStageClassifier.from_pretrained(model)
    files = sorted(photos.rglob("*.png"))
    assert sorted(table.image_path(n) for n in range(table.num_images)) == [
        str(file.relative_to(photos)) for file in files
    ]
    assert (table.num_images, table.num_exits) == (21, 3)
    assert table.class_names == list(NAMES)
    assert table.costs().tolist() == list(loaded.macs_per_exit())
    assert table.label is not None
    assert table.prediction is not None
    paths = [table.image_path(n) for n in range(table.num_images)]
    assert [NAMES[label] for label in table.label] == [path.split("/")[0] for path in paths]
    images = torch.stack([loaded.preprocessing(read_photo(photos / path)) for path in paths])
    median = np.median(table.confidence, axis=0)
    for thresholds in (median[:2].tolist(), [0.9, 0.7], [1.0, -1.0]):
        away = np.abs(table.confidence[:, :2] - np.float32(thresholds)).min(axis=1)
        clear = away > 1e-5
        index = apply_thresholds(table.confidence, thresholds)
        found = loaded.classify(images, thresholds)
        assert (index == found.exit_step.numpy() - 1)[clear].all()
        answers = table.prediction[np.arange(len(index)), index]
        assert (answers == found.label.numpy())[clear].all()
    assert len(set(apply_thresholds(table.confidence, median[:2]))) == 3  # not a trivial case
    assert table.temperatures is not None
    assert table.metadata["failures"] == 0


def test_summary_and_anytime(report: Path) -> None:
    table = ExitTable.load(report / "exits.npz")
    with open(report / "anytime.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["exit"]) for row in rows] == [1, 2, 3]
    np.testing.assert_allclose([float(row["top1"]) for row in rows], table.correct.mean(axis=0))
    assert [float(row["macs"]) for row in rows] == table.costs().tolist()
    assert [float(row["top5"]) for row in rows] == [1, 1, 1]  # there are four classes
    summary = json.loads((report / "summary.json").read_text())
    assert summary["num_images"] == 21
    assert summary["anytime"][0]["top1"] == float(rows[0]["top1"])
    folded, unfolded = summary["anytime"][1]["macs"], summary["macs_per_exit_unfolded"][1]
    assert folded < unfolded
    assert (report / "failures.csv").read_text() == "image,reason\n"
    assert not (report / "parts").exists()


def test_resume_after_a_kill(
    report: Path, model: Path, photos: Path, tmp_path: Path, evaluate: Command
) -> None:
    """Killed while it wrote the fourth part; the result is the same file, and work is kept."""
    out = tmp_path / "report"
    arguments = [
        "evaluate", "--model", model, "--data", photos, "--out", out, *QUICK, "--chunk-size", 4,
    ]  # fmt: skip
    dying = (
        "import os, signal, sys\n"
        "replace = os.replace\n"
        "def until_the_fourth(source, target):\n"
        "    if str(target).endswith('000003.npz'):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    replace(source, target)\n"
        "os.replace = until_the_fourth\n"
        "from anchornet_ext.cli import main\n"
        "main(sys.argv[1:])\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", dying, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=environment(),
    )
    assert killed.returncode == -signal.SIGKILL
    assert sorted(path.name for path in out.glob("parts/0*")) == [
        "000000.npz", "000001.npz", "000002.npz",
    ]  # fmt: skip
    assert not (out / "exits.npz").exists()
    (out / "parts" / "000001.npz").write_bytes(b"PK")  # and the disk lost one
    done = evaluate(*arguments[1:], "--resume")
    assert done.returncode == 0, done.stderr
    assert "4 of 6 parts to do" in done.stderr
    assert (out / "exits.npz").read_bytes() == (report / "exits.npz").read_bytes()


def test_torchrun_gives_the_identical_table(
    report: Path, model: Path, photos: Path, tmp_path: Path
) -> None:
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    done = in_own_process(
        "evaluate", "--model", model, "--data", photos, "--out", tmp_path, *QUICK,
        "--chunk-size", 4, "--device", "cpu", launcher=torchrun,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("parts to do") == 1  # one process speaks
    assert (tmp_path / "exits.npz").read_bytes() == (report / "exits.npz").read_bytes()


def test_resume_with_other_settings_is_refused(
    report: Path, model: Path, photos: Path, tmp_path: Path, evaluate: Command
) -> None:
    out = tmp_path / "report"
    shutil.copytree(report, out)
    same = ("--model", model, "--data", photos, "--out", out, *QUICK, "--chunk-size", 4)
    done = evaluate(*same)
    assert done.returncode == 2
    assert "already holds an evaluation; use --resume" in done.stderr
    changed = shutil.copytree(photos, tmp_path / "photos")
    next(changed.rglob("*.*")).write_bytes(b"not that long")
    done = evaluate(*same, "--data", changed, "--resume")
    assert done.returncode == 2
    assert "file sizes of the images" in done.stderr
    begun = json.loads((out / "collection.json").read_text())
    del begun["file sizes of the images"]  # as it was before they were compared
    (out / "collection.json").write_text(json.dumps(begun))
    done = evaluate(*same, "--resume")  # nothing to do but the report
    assert done.returncode == 0, done.stderr
    assert "0 of 6 parts to do" in done.stderr
    for change, said in (
        (("--chunk-size", 5), "part_size (4 there, 5 here)"),
        (("--limit", 10), "images"),
        (("--no-temperatures",), "temperatures"),
    ):
        done = evaluate(*same, *change, "--resume")
        assert done.returncode == 2
        assert said in done.stderr
        assert "use --overwrite" in done.stderr
    other = tmp_path / "other"
    save_model(other, seed=4)
    done = evaluate("--model", other, *same[2:], "--resume")
    assert done.returncode == 2
    assert "model (" in done.stderr
    done = evaluate("--model", other, *same[2:], "--overwrite", "--no-temperatures")
    assert done.returncode == 0, done.stderr
    before, after = (ExitTable.load(folder / "exits.npz") for folder in (report, out))
    assert not np.array_equal(before.confidence, after.confidence)
    assert after.temperatures is None


def test_unreadable_photos_are_left_out(
    report: Path, model: Path, photos: Path, tmp_path: Path, evaluate: Command
) -> None:
    """Broken, empty, elongated; a whole part of them; and a name that is no text."""
    data = tmp_path / "photos"
    shutil.copytree(photos, data)
    whole = (data / "ant" / "1.png").read_bytes()
    (data / "ant" / "1.png").write_bytes(whole[: len(whole) // 2])
    for name in ("a", "b", "c", "d", "e", "f", "g", "h", "i"):
        (data / "bee").mkdir(exist_ok=True)
        (data / "bee" / f"{name}.jpg").touch()
    shutil.copy(data / "ant" / "0.png", data / "ant" / os.fsdecode(b"caf\xe9.png"))
    (data / "cat" / os.fsdecode(b"br\xfbl\xe9e.png")).write_bytes(b"no picture")
    out = tmp_path / "out"
    done = evaluate(
        "--model", model, "--data", data, "--out", out, *QUICK, "--chunk-size", 4, "--workers", 1
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "11 photos left out" in done.stderr
    with open(out / "failures.csv", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 11
    assert rows[0]["image"] == "ant/1.png"
    assert "broken or cut short" in rows[0]["reason"]
    assert rows[1]["image"] == "bee/a.jpg"
    assert "is empty" in rows[1]["reason"]
    assert os.fsencode(rows[-1]["image"]) == b"cat/br\xfbl\xe9e.png"
    table, full = ExitTable.load(out / "exits.npz"), ExitTable.load(report / "exits.npz")
    assert table.num_images == 21
    assert table.metadata["failures"] == 11
    rows_of = {table.image_path(n): n for n in range(table.num_images)}
    assert set(rows_of) - {full.image_path(n) for n in range(21)} == {
        "ant/" + os.fsdecode(b"caf\xe9.png")
    }
    for n in range(21):  # the others' rows are where their names are
        if full.image_path(n) == "ant/1.png":
            continue
        m = rows_of[full.image_path(n)]
        np.testing.assert_allclose(table.confidence[m], full.confidence[n], atol=1e-4)


def test_nothing_readable_is_an_error(model: Path, tmp_path: Path, evaluate: Command) -> None:
    (tmp_path / "photos" / "ant").mkdir(parents=True)
    (tmp_path / "photos" / "ant" / "a.png").touch()
    timed = [flag for flag in QUICK if flag != "--no-latency"]
    done = evaluate(
        "--model", model, "--data", tmp_path / "photos", "--out", tmp_path / "out", *timed
    )
    assert done.returncode == 2
    assert "timing" not in done.stderr  # of nothing
    assert done.stderr.count("none of the 1 images could be read") == 1
    assert "none of the 1 images could be read" in (tmp_path / "out" / "log.txt").read_text()
    assert "a.png is empty" in (tmp_path / "out" / "failures.csv").read_text()


def test_a_network_that_gives_no_number(photos: Path, tmp_path: Path, evaluate: Command) -> None:
    """As a diverged training leaves it: images are counted as failures and named."""
    network = build_backbone(BACKBONE, len(NAMES))
    network.classifier[1].bias.data[1] = torch.nan
    weights = tmp_path / "plain.safetensors"
    safetensors.torch.save_file(network.state_dict(), weights)
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    done = evaluate(
        "--backbone", BACKBONE, "--weights", weights, "--image-size", 64, "--data", photos,
        "--class-names", tmp_path / "names.txt", "--out", tmp_path / "out", *QUICK,
    )  # fmt: skip
    assert done.returncode == 2
    assert "give no number" in done.stderr


def test_a_plain_network(photos: Path, tmp_path: Path, evaluate: Command) -> None:
    torch.manual_seed(0)
    network = build_backbone(BACKBONE, 3).eval()
    weights = tmp_path / "plain.safetensors"
    safetensors.torch.save_file(network.state_dict(), weights)
    done = evaluate(
        "--backbone", BACKBONE, "--weights", weights, "--image-size", SIDE, "--data", photos,
        "--resize-size", 120, "--limit", 6, "--out", tmp_path / "out", *QUICK,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = ExitTable.load(tmp_path / "out" / "exits.npz")
    assert (table.num_images, table.num_exits) == (6, 1)
    assert table.class_names == ["ant", "cat", "dog"]
    paths = [table.image_path(n) for n in range(6)]
    assert {path.split("/")[0] for path in paths} == {"ant", "cat", "dog"}  # spread out
    preprocessing = Preprocessing(120, SIDE)
    images = torch.stack([preprocessing(read_photo(photos / path)) for path in paths])
    with torch.no_grad():
        expected = network(images).softmax(dim=1).amax(dim=1)
    np.testing.assert_allclose(table.confidence[:, 0], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "MODEL"], "the following arguments are required: --data"),
        (["--model", "MODEL", "--data", "PHOTOS"], "required: --out"),
        (["--data", "PHOTOS", "--out", "OUT"], "one of the arguments --model --backbone"),
        (["FULL", "--backbone", "resnet18"], "not allowed with"),
        (["FULL", "--resume", "--overwrite"], "not allowed with"),
        (["FULL", "--batch-size", "0"], "'0' is not a number from 1 on"),
        (["FULL", "--batch-size", "many"], "'many' is not a number from 1 on"),
        (["FULL", "--chunk-size", "0"], "'0' is not a number from 1 on"),
        (["FULL", "--workers", "-1"], "'-1' is not a number from 0 on"),
        (["FULL", "--threads", "0"], "'0' is not a number from 1 on"),
        (["FULL", "--limit", "0"], "'0' is not a number from 1 on"),
        (["FULL", "--log-interval", "nan"], "'nan' is not a number of seconds"),
        (["FULL", "--device", "abacus"], "--device 'abacus' is none of"),
        (["FULL", "--weights", "w.safetensors"], "--weights goes with --backbone"),
        (["FULL", "--pretrained"], "--pretrained goes with --backbone"),
        (["FULL", "--image-size", "224"], "--image-size goes with --backbone"),
        (["FULL", "--resize-size", "224"], "--resize-size goes with --backbone"),
        (["FULL", "--class-names", "NAMES"], "the model has names for its classes"),
        (["FULL", "--data", "gone"], "gone' does not exist"),
        (["FULL", "--data", "MODEL"], "has no class folders"),
        (["FULL", "--data", "PARENT"], "classes that the model does not have: photos"),
        (["FULL", "--model", "gone"], "no model at 'gone'"),
        (["FULL", "--model", "PHOTOS"], "is not a saved model"),
        (["FULL", "--out", "NAMES"], "is not a folder"),
        (["PLAIN"], "--backbone needs --weights FILE or --pretrained"),
        (["PLAIN", "--pretrained"], "are for 1000 classes, there are 3 here"),
        (["PLAIN", "--backbone", "resnot18", "--pretrained"], "did you mean resnet18"),
        (["PLAIN", "--backbone", "timm/resnot18", "--pretrained"], "did you mean"),
        (["PLAIN", "--weights", "gone"], "there are no weights at 'gone'"),
        (["PLAIN", "--weights", "NAMES"], "is not a safetensors file"),
        (["PLAIN", "--weights", "OTHER"], "does not fit"),
        (["PLAIN", "--pretrained", "--weights", "OTHER"], "not allowed with"),
        (["PLAIN", "--weights", "OTHER", "--class-names", "EMPTY"], "a name on every line"),
        (["PLAIN", "--weights", "OTHER", "--class-names", "OTHER"], "is no text"),
        (["PLAIN", "--weights", "OTHER", "--class-names", "gone"], "No such file"),
        (
            ["PLAIN", "--weights", "OTHER", "--image-size", "64", "--resize-size", "32"],
            "crop_size 64 is larger than resize_size 32",
        ),
    ],
)
def test_bad_input_is_named_before_any_work(
    model: Path,
    photos: Path,
    tmp_path: Path,
    evaluate: Command,
    arguments: list[str],
    message: str,
) -> None:
    places = {name: tmp_path / name.lower() for name in ("NAMES", "EMPTY", "OTHER", "OUT")}
    places |= {"MODEL": model, "PHOTOS": photos, "PARENT": tmp_path / "parent"}
    places["NAMES"].write_text("ant\ncat\ndog\n")
    places["EMPTY"].write_text("ant\n\n")
    safetensors.torch.save_file({"a": torch.tensor([float("nan")])}, places["OTHER"])
    (tmp_path / "parent" / "photos" / "ant").mkdir(parents=True)
    common = ["--data", "PHOTOS", "--out", "OUT"]
    expanded = {"FULL": ["--model", "MODEL", *common], "PLAIN": ["--backbone", "resnet18", *common]}
    words = [word for argument in arguments for word in expanded.get(argument, [argument])]
    done = evaluate(*(places.get(word, word) for word in words))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("parts"))


def test_a_class_name_that_the_model_has_twice(
    photos: Path, tmp_path: Path, evaluate: Command
) -> None:
    """Published ImageNet names have such pairs, cranes and maillots."""
    model = tmp_path / "model"
    save_model(model, class_names=("ant", "cat", "dog", "ant"))
    done = evaluate("--model", model, "--data", photos, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "the model has 2 classes named 'ant'" in done.stderr


def test_a_model_without_class_names(photos: Path, tmp_path: Path, evaluate: Command) -> None:
    model, names = tmp_path / "model", tmp_path / "names.txt"
    save_model(model, class_names=None)
    arguments = (
        "--model",
        model,
        "--data",
        photos,
        "--out",
        tmp_path / "out",
        "--limit",
        3,
        *QUICK,
    )
    done = evaluate(*arguments)
    assert done.returncode == 2
    assert "the model has 4 classes without names, and" in done.stderr
    assert "has 3: give --class-names" in done.stderr
    names.write_text("\n".join(reversed(NAMES)))
    done = evaluate(*arguments, "--class-names", names)
    assert done.returncode == 0, done.stderr
    table = ExitTable.load(tmp_path / "out" / "exits.npz")
    assert table.label is not None
    assert table.label.tolist() == [3, 1, 0]  # ant, cat, dog in the reversed order


def test_train_and_val_folders_are_told_apart(
    model: Path, photos: Path, tmp_path: Path, evaluate: Command
) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "val").symlink_to(photos)
    done = evaluate("--model", model, "--data", tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert f"did you mean '{tmp_path / 'val'}'?" in done.stderr


def test_names_that_are_no_text(model: Path, tmp_path: Path) -> None:
    """In the folder, a photo and a class; and nothing tells where the folder lies."""
    odd = os.fsdecode(b"bee\xff")
    named = tmp_path / "model"
    loaded = TwoStageClassifier.from_pretrained(model, fold=False)
    loaded.class_names = [odd if name == "bee" else name for name in NAMES]
    loaded.save_pretrained(named)
    data, out = tmp_path / os.fsdecode(b"d\xe9"), tmp_path / "out"
    save_photos(data, {"ant": 30, odd: 15})
    (data / odd / os.fsdecode(b"bad\xfe.png")).write_text("no photo")
    arguments = [
        ("--model", named, "--data", data, "--out", out),
        ("--workers", 0, "--threads", 1, "--no-latency"),
    ]
    assert cli.main(["evaluate", *(str(word) for words in arguments for word in words)]) == 0
    page = (out / "report.html").read_text("utf-8")
    assert "1 image could not be read" in page
    shown = [page.split("Images that could not be read")[1].split("</details>")[0]]
    shown += [(out / "failures.csv").read_text("utf-8", errors="surrogateescape")]
    for text in shown:
        assert "bad" in text
        assert str(tmp_path) not in text
    policy = tmp_path / "p.json"
    wanted = ["calibrate", out, "--accuracy", "1%", "--out", policy, "--install", named]
    assert cli.main([str(word) for word in wanted]) == 0
    assert ExitPolicy.load(policy).about["data"] == data.name
    again = TwoStageClassifier.from_pretrained(named)
    assert again.policy is not None
    assert again.class_names is not None
    assert odd in again.class_names


def test_a_new_policy_does_not_undo_an_evaluation(
    model: Path, photos: Path, tmp_path: Path, evaluate: Command
) -> None:
    """The table is the same; on the images that fitted it, a policy is said to flatter."""
    own = tmp_path / "model"
    shutil.copytree(model, own)
    data = ("--data", photos, *QUICK)
    assert evaluate("--model", own, "--out", tmp_path / "out", *data).returncode == 0
    table = (tmp_path / "out" / "exits.npz").read_bytes()
    about = {"data": photos.name, "images": 20, "system": "AnchorNet (of another name)"}
    install_policy(own, ExitPolicy((0.5, 0.5), about=about))
    done = evaluate("--model", own, "--out", tmp_path / "out", *data, "--resume")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "exits.npz").read_bytes() == table
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    (point,) = summary["operating_points"]
    assert (point["name"], point["held_out"]) == ("the model's own", False)

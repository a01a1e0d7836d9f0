"""`anchornet train` as a user runs it: what it writes, and what it says of bad input."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import Command, Outcome, command_line, environment
from safetensors import safe_open
from safetensors.torch import load_file

from anchornet_ext import _extension
from anchornet_ext.models import AnchorNet, build_backbone
from anchornet_ext.training.checkpoint import save_weights

BACKBONE = "shufflenet_v2_x0_5"
SMALL = ("--crop-size", 104, "--resize-size", 110, "--threads", 1, "--workers", 0, "--cache")
needs_operators = pytest.mark.skipif(
    not _extension.available(), reason="the native library is not built"
)


def train(photos: Path, run: Path, *more: object) -> list[object]:
    return ["train", "--data", photos, "--out", run, "--backbone", BACKBONE, *SMALL, *more]


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8") as file:
        return list(csv.DictReader(file))


@needs_operators
def test_four_stages_give_a_classifier(photos: Path, tmp_path: Path) -> None:
    from anchornet_ext.data.photos import read_photo
    from anchornet_ext.inference import TwoStageClassifier

    run = tmp_path / "run"
    flags: list[object] = ["--tensorboard", "--num-patches", 2, "--backbone-size", 64]
    for stage, batch in (("backbone", 8), ("anchor", 8), ("glance", 8), ("focus", 16)):
        flags += [f"--{stage}-batch", batch, f"--{stage}-epochs", 2, f"--{stage}-lr", 0.02]
    arguments = train(photos, run, *flags)
    done = subprocess.run(
        command_line(*arguments),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for stage in ("backbone", "anchor", "glance", "focus"):
        rows = read_csv(run / stage / "log.csv")
        assert [row["epoch"] for row in rows] == ["1", "2"]
        assert all(0 < float(row["train_loss"]) < 10 for row in rows)
        best = max(float(row["val_top1"]) for row in rows)
        with safe_open(run / stage / "best.safetensors", "pt") as file:
            metadata = file.metadata()
        assert float(metadata["top1"]) == pytest.approx(best, abs=1e-6)
        assert float(rows[int(metadata["epoch"]) - 1]["val_top1"]) == best
        assert list((run / "tensorboard" / stage).glob("events.*"))
    config = json.loads((run / "config.json").read_text())
    assert config["commands"][0].endswith(" ".join(map(str, arguments[-4:])))
    assert config["versions"]["torch"] == torch.__version__
    assert config["classes"] == ["ant", "bee", "cat"]
    assert config["stages"]["focus"]["batch"] == 16
    text = (run / "log.txt").read_text()
    assert "$ anchornet train" in text
    assert "24 training and 9 validation images of 3 classes" in text
    classifier = TwoStageClassifier.from_pretrained(run / "model").eval()
    assert classifier.class_names == ("ant", "bee", "cat")
    assert (classifier.num_patches, classifier.glance_size) == (2, 95)
    assert classifier.preprocessing.crop_size == 104
    image = classifier.preprocessing(read_photo(photos / "val" / "ant" / "0.png"))
    with torch.inference_mode():
        logits = classifier(image[None])
    assert logits.shape == (1, 3)
    assert logits.isfinite().all()


@needs_operators
def test_stages_alone_find_the_earlier_ones(
    photos: Path, tmp_path: Path, anchornet: Command
) -> None:
    run = tmp_path / "run"

    def stage(*flags: object) -> Outcome:
        return anchornet(*train(photos, run, *flags))

    missing = stage("--stages", "glance")
    assert missing.returncode == 2
    assert "run stage backbone first" in missing.stderr
    assert not run.exists()  # said before anything was begun
    weights = tmp_path / "start.safetensors"
    save_weights(weights, build_backbone(BACKBONE, 3).state_dict(), {})
    start = ("--backbone-weights", weights)
    missing = stage("--stages", "focus", *start)
    assert missing.returncode == 2
    assert "run stage anchor first" in missing.stderr
    one = ("--glance-epochs", 1, "--anchor-epochs", 1, "--focus-epochs", 1)
    first = stage("--stages", "glance", *start, *one)
    assert first.returncode == 0, first.stderr
    assert "no model yet: anchor, focus" in first.stderr
    assert stage("--stages", "anchor", *one).returncode == 0
    last = stage("--stages", "focus", *start, *one)
    assert last.returncode == 0, last.stderr
    assert (run / "model" / "config.json").is_file()
    assert len(json.loads((run / "config.json").read_text())["commands"]) == 3
    other = stage("--stages", "focus", *start, "--crop-size", 112, "--resize-size", 112)
    assert other.returncode == 2
    assert "use another --out" in other.stderr


def test_no_epochs_keep_the_initial_weights(
    photos: Path, tmp_path: Path, anchornet: Command
) -> None:
    run = tmp_path / "run"
    done = anchornet(*train(photos, run, "--stages", "anchor", "--anchor-epochs", 0, "--seed", 5))
    assert done.returncode == 0, done.stderr
    torch.manual_seed(5)
    expected = AnchorNet(3).state_dict()
    found = load_file(run / "anchor" / "best.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("cache", ["--cache", "--no-cache"])
def test_an_unreadable_photo_does_not_stop_the_run(
    photos: Path, tmp_path: Path, anchornet: Command, cache: str
) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "train" / "ant" / "1.png").write_bytes(b"nothing")
    (folder / "val" / "cat" / "1.png").write_bytes(b"")
    flags = ("--stages", "backbone", "--backbone-epochs", 2, "--backbone-size", 32)
    done = anchornet(*train(folder, tmp_path / "run", *flags, "--backbone-batch", 24, cache))
    assert done.returncode == 0, done.stderr
    for name in ("ant/1.png", "cat/1.png"):
        assert done.stderr.count(f"{name}") == 1  # once, not at every epoch
    rows = read_csv(tmp_path / "run" / "backbone" / "log.csv")
    assert float(rows[0]["val_top1"]) * 8 % 1 == pytest.approx(0)  # of the 8 that are left


def test_a_diverging_run_says_so(photos: Path, tmp_path: Path, anchornet: Command) -> None:
    flags = ("--stages", "backbone", "--backbone-size", 32, "--backbone-batch", 8)
    done = anchornet(*train(photos, tmp_path / "run", *flags, "--backbone-lr", 1e30))
    assert done.returncode == 2
    assert done.stderr.count("diverged in epoch 1") == 1
    assert "diverged in epoch 1" in (tmp_path / "run" / "log.txt").read_text()


BAD = [
    (("--data", "/nonexistent/photos"), "'/nonexistent/photos' does not exist"),
    (("--val-fraction", "0.5"), "has a val folder"),
    (("--backbone", "resnet51"), "'resnet51'"),
    (("--stages", "anchor,sleep"), "sleep"),
    (("--stages", ","), "','"),
    (("--backbone-weights", "/nonexistent.safetensors"), "'/nonexistent.safetensors'"),
    (("--crop-size", "90", "--stages", "anchor"), "--crop-size 90 is smaller than"),
    (("--crop-size", "300"), "crop_size 300 is larger than resize_size 110"),
    (("--workers", "-1"), "argument --workers: '-1' is not a number from 0 on"),
    (("--threads", "0"), "argument --threads: '0' is not a number from 1 on"),
    (("--num-patches", "0"), "--num-patches must be at least 1, not 0"),
    (("--num-patches", "5", "--focus-batch", "100"), "at most 4"),
    (("--iou-threshold", "1.5"), "--iou-threshold must be within [0, 1], not 1.5"),
    (("--num-patches", "3", "--stages", "backbone,anchor,focus"), "--focus-batch 256"),
    (("--cache-short-side", "0"), "argument --cache-short-side: '0' is not a number"),
    (("--seed", "-1"), "argument --seed: '-1' is not a number from 0 on"),
    (("--seed", str(2**63)), "--seed must be below 2^63"),
    (("--log-interval", "nan"), "argument --log-interval: 'nan' is not a number of seconds"),
    (("--device", "abacus"), "--device 'abacus' is none of"),
    (("--device", "meta"), "only the CPU and CUDA devices"),
    (("--anchor-lr", "-1"), "stage anchor: lr must be positive and finite, not -1"),
    (("--anchor-lr", "fast"), "fast"),
    (("--resume", "--overwrite"), "--resume and --overwrite"),
    (("--amp", "fp8"), "fp8"),
]


@pytest.mark.parametrize(("flags", "message"), BAD, ids=[" ".join(flags) for flags, _ in BAD])
def test_bad_input_is_named_before_any_work(
    photos: Path, tmp_path: Path, anchornet: Command, flags: tuple[str, ...], message: str
) -> None:
    run = tmp_path / "run"
    done = anchornet(*train(photos, run, *flags))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not run.exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_cuda_where_there_is_none_is_refused(
    photos: Path, tmp_path: Path, anchornet: Command
) -> None:
    done = anchornet(*train(photos, tmp_path / "run", "--device", "cuda"))
    assert done.returncode == 2
    assert "torch sees no CUDA device" in done.stderr


def test_bad_folders_are_named(photos: Path, tmp_path: Path, anchornet: Command) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "val" / "zebra").mkdir()
    done = anchornet(*train(folder, tmp_path / "run"))
    assert (done.returncode, "zebra" in done.stderr) == (2, True)
    shutil.rmtree(folder / "val")
    done = anchornet(*train(folder, tmp_path / "run"))
    assert (done.returncode, "--val-fraction" in done.stderr) == (2, True)


def test_a_single_class_is_refused(photos: Path, tmp_path: Path, anchornet: Command) -> None:
    """As where --data is one folder too high: it would be told apart perfectly."""
    (tmp_path / "all").mkdir()
    shutil.copytree(photos / "train", tmp_path / "all" / "photos")
    run = tmp_path / "run"
    done = anchornet(*train(tmp_path / "all", run, "--val-fraction", 0.3))
    assert done.returncode == 2
    assert f"{str(tmp_path / 'all')!r} has one class, 'photos'" in done.stderr
    assert not run.exists()


@pytest.mark.parametrize("place", ["", "run", "runs/first"])
def test_a_run_among_the_classes_is_refused(
    photos: Path, tmp_path: Path, anchornet: Command, place: str
) -> None:
    data = tmp_path / "data"
    shutil.copytree(photos / "train", data)
    done = anchornet(*train(data, data / place, "--val-fraction", 0.3))
    assert done.returncode == 2
    assert f"--out {str(data / place)!r} is among the classes in {str(data)!r}" in done.stderr


def test_classes_that_are_never_validated_are_told(
    photos: Path, tmp_path: Path, anchornet: Command
) -> None:
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    gone = sorted((data / "val").iterdir())[1]
    shutil.rmtree(gone)
    done = anchornet(*train(data, data / "run", "--stages", "backbone", "--backbone-epochs", 0))
    assert done.returncode == 0, done.stderr
    assert f"no validation images of 1 classes: {gone.name}\n" in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{broken", "is not valid JSON"),
        ("config.json", "[]", "does not hold a JSON object"),
        ("config.json", '{"classes": ["x", "y"]}', "was begun with 2 classes, not these 3"),
        ("backbone/last.pt", "junk", "is not a training state"),
    ],
)
def test_a_damaged_run_is_named(
    photos: Path, tmp_path: Path, anchornet: Command, name: str, content: str, message: str
) -> None:
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text(content)
    done = anchornet(*train(photos, tmp_path / "run", "--stages", "backbone", "--resume"))
    assert done.returncode == 2
    assert message in done.stderr
    assert str(path.parent) in done.stderr


def test_weights_of_other_classes_are_refused(
    photos: Path, tmp_path: Path, anchornet: Command
) -> None:
    weights = tmp_path / "start.safetensors"
    save_weights(weights, build_backbone(BACKBONE, 5).state_dict(), {})
    done = anchornet(*train(photos, tmp_path / "run", "--backbone-weights", weights))
    assert done.returncode == 2
    assert str(weights) in done.stderr
    assert "of another shape" in done.stderr
    weights.write_bytes(b"junk")
    done = anchornet(*train(photos, tmp_path / "run", "--backbone-weights", weights))
    assert "is not a safetensors file" in done.stderr


def test_a_folder_that_cannot_be_written_is_named(
    photos: Path, tmp_path: Path, anchornet: Command
) -> None:
    (tmp_path / "file").write_text("in the way")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        done = anchornet(*train(photos, out, "--stages", "backbone"))
        assert done.returncode == 2
        assert str(tmp_path / "file") in done.stderr
        assert "Traceback" not in done.stderr


def test_torchrun_trains_and_writes_once(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = ("--stages", "anchor", "--anchor-batch", 12, "--anchor-epochs", 1)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launch, *command_line(*train(photos, run, *flags))[1:]],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "2 process(es) on cpu" in done.stderr
    assert (run / "log.txt").read_text().count("anchor epoch 1/1") == 1
    assert len(read_csv(run / "anchor" / "log.csv")) == 1
    assert len(json.loads((run / "config.json").read_text())["commands"]) == 1


def test_photos_that_do_not_fit_into_memory_are_refused(
    photos: Path, tmp_path: Path, anchornet: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(needed: int) -> None:
        raise MemoryError(f"the decoded images need {needed} bytes")

    monkeypatch.setattr("anchornet_ext.data.sources._check_memory", full)
    done = anchornet(*train(photos, tmp_path / "run", "--stages", "anchor"))
    assert done.returncode == 2
    assert "the decoded images need" in done.stderr

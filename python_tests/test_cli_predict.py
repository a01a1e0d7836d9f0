"""`anchornet predict` as its users run it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Command, Outcome, in_own_process, in_this_process
from PIL import Image

from anchornet_ext.data.photos import read_photo
from anchornet_ext.inference import TwoStageClassifier, command
from anchornet_ext.inference.prediction import prediction_of
from anchornet_ext.models import AnchorNet, build_backbone
from anchornet_ext.models.fused_network import FusedNetwork
from anchornet_ext.policy.exit_policy import ExitPolicy

BACKBONE = "squeezenet1_1"
NAMES = ("cat", "dog", "ibis")
KEYS = {
    "photo", "photo_size", "label", "class_index", "confidence", "top", "exit", "answer_step",
    "num_exits", "steps", "crop_box", "macs", "full_macs", "cost_share", "overlay",
}  # fmt: skip
STEP_KEYS = {"input", "kind", "label", "confidence", "box", "photo_box"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    classifier = TwoStageClassifier(
        AnchorNet(len(NAMES)),
        build_backbone(BACKBONE, len(NAMES)),
        build_backbone(BACKBONE, len(NAMES)),
        class_names=NAMES,
        glance_name=BACKBONE,
        focus_name=BACKBONE,
    )
    folder = tmp_path_factory.mktemp("model")
    classifier.save_pretrained(folder)
    return folder


def picture(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photos, one of them below a folder, one turned by EXIF, a broken and an empty one."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    picture(1).save(folder / "a.png")
    picture(2, (90, 70)).save(folder / "below" / "B.JPG", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = picture(1)
    upright.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.png", exif=exif)
    blob = (folder / "a.png").read_bytes()
    (folder / "broken.png").write_bytes(blob[: len(blob) // 2])
    (folder / "empty.jpg").touch()
    (folder / "notes.txt").write_text("no photo")
    return folder


def anchornet(*arguments: object) -> Outcome:
    return in_own_process("predict", *arguments)


@pytest.fixture
def in_process(capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """The same command without the seconds that it takes to import torch."""
    with in_this_process(capsys, "predict") as run:
        yield run


def lines(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_json_of_a_folder_with_broken_files(photos: Path, model: Path, tmp_path: Path) -> None:
    """Broken files are told on stderr, the rest is classified, the status is 1."""
    done = anchornet(
        photos, "--model", model, "--json", "--top", 2, "--overlay", tmp_path / "out",
        "--threads", 1,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "broken.png is broken or cut short" in done.stderr
    assert "empty.jpg is empty" in done.stderr
    assert len(done.stderr.splitlines()) == 2
    found = {Path(line["photo"]).name: line for line in lines(done.stdout)}
    assert list(found) == ["a.png", "turned.png", "B.JPG"]
    for line in found.values():
        assert set(line) == KEYS
        assert all(set(step) == STEP_KEYS for step in line["steps"])
        assert [step["input"] for step in line["steps"]] == [1, 2, 3, 4, 5]
        assert [step["kind"] for step in line["steps"]] == ["glance"] + ["patch"] * 4
        assert line["exit"] == line["num_exits"] == 5
        assert line["label"] == NAMES[line["class_index"]] == line["top"][0]["label"]
        assert line["confidence"] == pytest.approx(line["top"][0]["probability"], abs=1e-6)
        assert line["confidence"] == line["steps"][-1]["confidence"]
        assert line["label"] == line["steps"][-1]["label"]
        assert len(line["top"]) == 2
        assert line["top"][0]["probability"] >= line["top"][1]["probability"]
        assert line["macs"] == line["full_macs"]
        assert line["cost_share"] == 1
        with Image.open(line["overlay"]) as overlay:
            assert overlay.format == "PNG"
            assert overlay.width == 1200
    # a.png and turned.png are the same picture once upright.
    for key in KEYS - {"photo", "overlay", "confidence", "steps", "top"}:
        assert found["a.png"][key] == found["turned.png"][key], key
    for one, other in zip(found["a.png"]["steps"], found["turned.png"]["steps"], strict=True):
        assert one["box"] == other["box"]
        assert one["photo_box"] == other["photo_box"]
        assert one["confidence"] == pytest.approx(other["confidence"], abs=1e-4)
    assert found["a.png"]["photo_size"] == [240, 320]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "B.overlay.png", "a.overlay.png", "turned.overlay.png",
    ]  # fmt: skip


def test_boxes_say_where_the_patch_is_in_the_photo(
    photos: Path, model: Path, in_process: Command
) -> None:
    """The patch cut from the photo by its photo_box is the patch cut from the crop by its box."""
    status, out, err = in_process(photos / "turned.png", "--model", model, "--json")
    assert (status, err) == (0, "")
    (line,) = lines(out)
    loaded = TwoStageClassifier.from_pretrained(model)
    photo = read_photo(photos / "turned.png")
    crop = loaded.preprocessing(photo)
    for step in line["steps"][1:]:
        top, left, bottom, right = step["box"]
        assert (bottom - top, right - left) == (95, 95)
        patch = crop[:, top:bottom, left:right]
        top, left, bottom, right = step["photo_box"]
        cut = photo.resize((95, 95), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
        pixels = torch.from_numpy(np.array(cut)).permute(2, 0, 1)
        # Resampled twice instead of once: the same picture, not the same bits.
        assert (loaded.preprocessing.normalise(pixels) - patch).abs().mean() < 0.05


def test_table_through_a_pipe(photos: Path, model: Path) -> None:
    done = anchornet(photos / "a.png", photos / "*" / "*.JPG", "--model", model, "--exit", 2)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout  # no colours outside a terminal
    header, *rest = done.stdout.splitlines()
    for word in ("photo", "class", "sure", "exit", "MMACs", "of full"):
        assert word in header
    assert sum("2 of 5" in line for line in rest) == 2
    assert sum("input 1: glance -> " in line for line in rest) == 2
    assert sum("input 2: patch  rows " in line and "of the photo" in line for line in rest) == 2
    assert rest[-1].startswith("2 photos: 2 after input 2; on average")


def test_thresholds_decide_where_photos_leave(
    photos: Path, model: Path, in_process: Command
) -> None:
    arguments = (photos / "a.png", photos / "below", "--model", model, "--json")
    _, out, _ = in_process(*arguments, "--exit", 5)
    confidences = [[step["confidence"] for step in line["steps"]] for line in lines(out)]
    first = sorted(confidence[0] for confidence in confidences)
    between = sum(first) / 2  # one of the two photos is surer at the glance
    assert first[0] < between < first[1]
    _, out, _ = in_process(*arguments, "--thresholds", f"{between},2,-1,2")
    exits = [line["exit"] for line in lines(out)]
    assert exits == [1 if confidence[0] > between else 3 for confidence in confidences]
    for line in lines(out):
        assert len(line["steps"]) == line["exit"]
        assert (line["cost_share"] < 0.5) == (line["exit"] == 1)
    _, out, _ = in_process(*arguments, "--thresholds", "-1")  # one number for all
    assert [line["exit"] for line in lines(out)] == [1, 1]


@pytest.mark.parametrize("extra", [[], ["--no-extra-map"]])
def test_overlay_of_photos_that_left_at_the_glance(
    photos: Path, model: Path, tmp_path: Path, in_process: Command, extra: list[str]
) -> None:
    out = tmp_path / "deep" / "out"
    status, _, err = in_process(
        photos / "a.png", "--model", model, "--exit", 1, "--overlay", out, *extra
    )
    assert (status, err) == (0, "")
    with Image.open(out / "a.overlay.png") as overlay:
        # The colour bar beside the map is there only with a map.
        bar = np.asarray(overlay.convert("RGB"))[96:536, 1085:1103].reshape(-1, 3)
    assert (len(np.unique(bar, axis=0)) > 100) == (not extra)


def test_batches_give_the_same_answers(photos: Path, model: Path, in_process: Command) -> None:
    """More photos than a batch, with broken ones among them."""
    results = []
    for batch in (1, 2, 32):
        status, out, err = in_process(photos, "--model", model, "--json", "--batch", batch)
        assert status == 1
        assert len(err.splitlines()) == 2
        results.append(lines(out))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert one["photo"] == two["photo"]
            assert one["confidence"] == pytest.approx(two["confidence"], abs=1e-4)


def test_half_precision_and_compilation(
    photos: Path, model: Path, in_process: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (photos, "--model", model, "--json", "--exit", 3)
    expected = lines(in_process(*arguments).stdout)
    compiler, compiled = torch.compile, []

    def quick(network: torch.nn.Module, **options: Any) -> Any:
        compiled.append(next(network.parameters()).dtype)
        return compiler(network, backend="eager", dynamic=options["dynamic"])

    monkeypatch.setattr(torch, "compile", quick)
    # So few photos would be left to this package's operators.
    monkeypatch.setattr(FusedNetwork, "is_faster_than_compiled", lambda network, images: False)
    for extra, dtype, close in (
        (("--dtype", "bfloat16"), None, 3e-2),
        (("--compile",), torch.float32, 1e-4),
        (("--compile", "--dtype", "bfloat16"), torch.bfloat16, 3e-2),
    ):
        got = lines(in_process(*arguments, *extra).stdout)
        difference = [
            abs(one["confidence"] - other["confidence"])
            for one, other in zip(got, expected, strict=True)
        ]
        assert max(difference) < close
        assert (max(difference) > 1e-6) == ("bfloat16" in extra)
        assert set(compiled) == ({dtype} if dtype else set())
        compiled.clear()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--exit", "6"], "this model has 5 exits"),
        (["--exit", "0"], "'0' is not a number from 1 on"),
        (["--exit", "2", "--thresholds", "0.5"], "not allowed with"),
        (["--thresholds", "0.5,0.5"], "need 4 thresholds, got 2"),
        (["--thresholds", "high"], "'high' is not a list of numbers"),
        (["--thresholds", "nan"], "not a number"),
        (["--batch", "many"], "'many' is not a number from 1 on"),
        (["--device", "abacus"], "--device 'abacus' is none of"),
        (["--device", "meta"], "only the CPU and CUDA devices"),
        (["--model", "no-such-model"], "'no-such-model': it is neither a folder nor"),
    ],
)
def test_usage_errors(
    photos: Path, model: Path, in_process: Command, arguments: list[str], message: str
) -> None:
    status, out, err = in_process(photos / "a.png", "--model", model, *arguments)
    assert status == 2
    assert out == ""
    assert message in err
    assert "Traceback" not in err


def test_nothing_to_classify(tmp_path: Path, model: Path, in_process: Command) -> None:
    done = in_process(tmp_path / "*.jpg", tmp_path / "gone.png", tmp_path, "--model", model)
    assert done.returncode == 2
    assert done.stdout == ""
    messages = done.stderr.splitlines()
    assert messages[0].endswith("*.jpg: nothing matches")
    assert messages[1].endswith("gone.png: there is no such file or folder")
    assert messages[2].endswith("there are no photos in this folder")
    assert messages[3] == "anchornet: error: no photo to classify"


def test_one_argument_that_matches_nothing_is_a_failure(
    photos: Path, model: Path, in_process: Command
) -> None:
    status, out, err = in_process(photos / "a.png", photos / "z*.png", "--model", model)
    assert status == 1
    assert "z*.png: nothing matches" in err
    assert "1 photo: 1 after input 5" in out
    assert "1 could not be classified" in out


def test_a_link_to_nowhere_is_told_like_any_other_file(
    tmp_path: Path, model: Path, in_process: Command
) -> None:
    photo = tmp_path / "gone.jpg"
    photo.symlink_to(tmp_path / "nowhere.jpg")
    done = in_process(photo, "--model", model)
    assert done.returncode == 1
    assert f"anchornet predict: {photo}: {os.strerror(errno.ENOENT)}\n" in done.stderr


def test_elongated_photos_are_refused(tmp_path: Path, model: Path, in_process: Command) -> None:
    """Resized to a short side of 256, this one would have 256 x 512000 pixels."""
    Image.new("RGB", (2000, 1)).save(tmp_path / "line.png")
    status, _, err = in_process(tmp_path / "line.png", "--model", model)
    assert status == 1
    assert "line.png: an image of 2000 x 1 pixels is a line" in err


def test_names_that_are_no_text(tmp_path: Path, model: Path) -> None:
    """A file name of bytes that are not UTF-8, as old cameras and archives leave them."""
    name = os.fsdecode(b"caf\xe9.png")
    try:
        picture(1).save(tmp_path / name)
    except OSError as error:  # macOS, for one, has UTF-8 names only
        pytest.skip(f"this file system takes no such name: {error}")
    done = anchornet(tmp_path, "--model", model, "--exit", 1)
    assert done.returncode == 0, done.stderr
    assert "caf\\udce9.png" in done.stdout


def test_the_predicted_class_is_first_also_among_equal_probabilities(model: Path) -> None:
    """A network that knows nothing: all probabilities are 1/3 in float32, the sums are not."""
    loaded = TwoStageClassifier.from_pretrained(model, fold=False)
    with torch.no_grad():
        for network in (loaded.glance, loaded.focus):
            layer = network.classifier[1]
            layer.weight.zero_()
            layer.bias.copy_(torch.tensor([0.0, 1e-9, 0.0]))
    crops = [torch.zeros(3, 224, 224, dtype=torch.uint8)]
    (result,) = loaded.stream(crops)
    prediction = prediction_of(loaded, crops[0], result.found, top=3)
    assert [one.label for one in prediction.top] == ["dog", "cat", "ibis"]
    assert prediction.looks[-1].label == "dog"


def test_found_photos_are_each_taken_once_and_in_order(photos: Path) -> None:
    found, problems = command.find_photos(
        [str(photos / "turned.png"), str(photos), str(photos / "**" / "*.JPG")]
    )
    assert [path.name for path in found] == [
        "turned.png", "a.png", "broken.png", "empty.jpg", "B.JPG",
    ]  # fmt: skip
    assert problems == []


def test_stars_go_round_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`glob`'s own go through each link to a folder above forty times, and through two for ever."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    for name in ("1.jpg", "a/2.jpg", "a/b/3.jpg", ".hidden/4.jpg"):
        (tmp_path / name).touch()
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "here").symlink_to(tmp_path / "a")
    names = ["1.jpg", "a/2.jpg", "a/b/3.jpg"]
    everywhere = [tmp_path / name for name in names]
    assert command.find_photos([f"{tmp_path}/**/*.jpg"]) == (everywhere, [])
    assert command.find_photos([f"{tmp_path}/**/b/**/*.jpg"]) == (everywhere[2:], [])
    monkeypatch.chdir(tmp_path)
    assert command.find_photos(["**/*.jpg"]) == ([Path(name) for name in names], [])
    assert command.find_photos(["**/[23].jpg"])[0] == [Path(name) for name in names[1:]]


def test_a_name_with_brackets_is_a_name(tmp_path: Path) -> None:
    (tmp_path / "a[1].jpg").touch()
    (tmp_path / "a1.jpg").touch()
    assert command.find_photos([str(tmp_path / "a[1].jpg")])[0] == [tmp_path / "a[1].jpg"]


def test_overlays_of_an_earlier_run_are_no_photos(photos: Path) -> None:
    (photos / "seen").mkdir()
    (photos / "seen" / "x.png").touch()
    (photos / "a.overlay.png").touch()
    found, _ = command.find_photos([str(photos)], leave_out=photos / "seen")
    assert not {"x.png", "a.overlay.png"} & {path.name for path in found}
    assert "x.png" in {path.name for path in command.find_photos([str(photos)])[0]}


def test_overlay_names_are_unique(tmp_path: Path) -> None:
    names = command.OverlayNames(tmp_path)
    got = [names.unique(Path(p)).name for p in ("x/a.jpg", "y/a.png", "A.jpg", "a.2.png")]
    assert got == ["a.overlay.png", "a.2.overlay.png", "A.3.overlay.png", "a.2.2.overlay.png"]


def test_a_policy_from_a_file(
    photos: Path, model: Path, tmp_path: Path, in_process: Command
) -> None:
    """Everybody goes to the end, and the answer is where the photo was surest."""
    path = tmp_path / "policy.json"
    ExitPolicy((1.0,) * 4, (1.0, 50.0, 50.0, 50.0, 50.0), "surest").save(path)
    arguments = (photos / "a.png", photos / "turned.png", "--model", model, "--policy", path)
    status, out, err = in_process(*arguments, "--json", "--overlay", tmp_path / "out")
    assert status == 0, err
    for line in lines(out):
        assert (line["exit"], line["answer_step"]) == (5, 1)
        assert line["confidence"] == line["steps"][0]["confidence"]
        assert line["confidence"] > max(step["confidence"] for step in line["steps"][1:])
        assert line["confidence"] == pytest.approx(line["top"][0]["probability"])
        assert line["label"] == line["steps"][0]["label"]
        assert Path(line["overlay"]).is_file()
    _, out, _ = in_process(*arguments)
    assert out.count("(the answer: surest here)") == 2
    _, out, _ = in_process(*arguments, "--exit", "2", "--json")
    assert [(line["exit"], line["answer_step"]) for line in lines(out)] == [(2, 1)] * 2


def test_a_policy_that_does_not_fit(
    photos: Path, model: Path, tmp_path: Path, in_process: Command
) -> None:
    arguments = (photos / "a.png", "--model", model, "--policy", tmp_path / "policy.json")
    status, out, err = in_process(*arguments)
    assert (status, out) == (2, "")
    assert "policy.json" in err
    ExitPolicy((0.5,)).save(tmp_path / "policy.json")
    status, out, err = in_process(*arguments)
    assert (status, out) == (2, "")
    assert "policy.json is for 2 exits, this model has 5" in err
    status, _, err = in_process(*arguments, "--thresholds", "0.5")
    assert status == 2
    assert "--thresholds or --policy, not both" in err

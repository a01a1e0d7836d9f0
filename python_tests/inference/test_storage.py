"""Saving and loading: nothing is lost, nothing half-written is taken for a model."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny_networks import tiny_classifier

from anchornet_ext.data.transforms import Preprocessing
from anchornet_ext.inference import TwoStageClassifier, storage
from anchornet_ext.models import AnchorNet, build_backbone
from anchornet_ext.models.tuning import TunedNetwork
from anchornet_ext.policy.exit_policy import ExitPolicy

BACKBONES = ("squeezenet1_1", "shufflenet_v2_x0_5")


@pytest.fixture(scope="module")
def classifier() -> TwoStageClassifier:
    torch.manual_seed(0)
    classes = 3
    model = TwoStageClassifier(
        AnchorNet(classes, skip="top_left"),
        build_backbone(BACKBONES[0], classes),
        build_backbone(BACKBONES[1], classes),
        num_patches=3,
        iou_threshold=(0.3, 0.2, 0.1),
        glance_size=64,
        class_names=("cat", "dog", "ibis æ"),
        preprocessing=Preprocessing(resize_size=150, crop_size=128, interpolation="bicubic"),
        criterion="probabilities",
        glance_name=BACKBONES[0],
        focus_name=BACKBONES[1],
        policy=ExitPolicy((0.5, 0.25, 0.75), (1.5, 1.25, 0.5, 2), "surest", {"budget": 1.5e9}),
    )
    # Statistics as after training, not the ones and zeros of a new network.
    model.train()
    with torch.no_grad():
        for part in (model.anchor, model.glance, model.focus):
            part(torch.randn(2, 3, 128, 128) * 3)
    return model.eval()


@pytest.fixture(scope="module")
def saved(classifier: TwoStageClassifier, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "not there yet" / "one"
    classifier.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "models" / "one"))


def edit(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_everything_comes_back(classifier: TwoStageClassifier, folder: Path) -> None:
    loaded = TwoStageClassifier.from_pretrained(folder, fold=False)
    state = loaded.state_dict()  # once: it goes through all modules
    for key, value in classifier.state_dict().items():
        assert torch.equal(state[key], value), key
    for name in (
        "num_patches", "glance_size", "class_names", "preprocessing", "criterion", "glance_name",
      "focus_name", "policy", "thresholds", "num_classes",
    ):  # fmt: skip
        assert getattr(loaded, name) == getattr(classifier, name), name
    assert tuple(loaded.iou_threshold) == classifier.iou_threshold
    assert loaded.anchor.skip == "top_left"
    assert not any(module.training for module in loaded.modules())


def test_a_model_of_format_version_1_has_thresholds(folder: Path) -> None:
    """The bundled model is one, and others that were trained before there were policies."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["policy"]
    for written, policy in (([0.5, 0.25, 2.0], ExitPolicy((0.5, 0.25, 2.0))), (None, None)):
        path.write_text(json.dumps(config | {"format_version": 1, "thresholds": written}))
        assert TwoStageClassifier.from_pretrained(folder).policy == policy


def test_loading_folds_unless_told_otherwise(folder: Path) -> None:
    folded = TwoStageClassifier.from_pretrained(folder)
    assert folded.is_folded
    assert folded.fold() is folded
    assert isinstance(folded.glance, TunedNetwork)
    assert isinstance(folded.focus, TunedNetwork)
    with pytest.raises(ValueError, match="folded"):
        folded.save_pretrained(folder)
    unfolded = TwoStageClassifier.from_pretrained(folder, fold=False)
    assert not unfolded.is_folded
    images = torch.randn(2, 3, 128, 128)
    torch.testing.assert_close(folded.anchor(images), unfolded.anchor(images), rtol=1e-4, atol=1e-5)
    # A copy: training the original on must not change what is being served.
    before = folded.glance(images)
    with torch.no_grad():
        for parameter in unfolded.parameters():
            parameter.zero_()
    assert torch.equal(folded.glance(images), before)


def test_configuration_holds_the_cost_of_every_exit(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    folded = TwoStageClassifier.from_pretrained(folder)
    assert tuple(config["macs_per_exit"]) == folded.macs_per_exit()
    glance, first, second, third = config["macs_per_exit"]
    assert 0 < glance < first < second < third
    assert third - second == second - first


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_halves_the_files_and_loads_as_float32(
    classifier: TwoStageClassifier, folder: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    classifier.save_pretrained(tmp_path / "half", dtype=dtype)
    for name in ("anchor", "glance", "focus"):
        full = (folder / f"{name}.safetensors").stat().st_size
        assert (tmp_path / "half" / f"{name}.safetensors").stat().st_size < 0.6 * full
    state = TwoStageClassifier.from_pretrained(tmp_path / "half", fold=False).state_dict()
    for key, value in classifier.state_dict().items():
        got = state[key]
        assert got.dtype == value.dtype, key
        expected = value.to(dtype).to(value.dtype) if value.ndim >= 2 else value
        assert torch.equal(got, expected), key


def test_a_weight_too_large_for_half_precision_is_named(tmp_path: Path) -> None:
    model = tiny_classifier(glance_name="tiny", focus_name="tiny")
    with torch.no_grad():
        model.focus.classifier.weight[0, 0] = 1e5
    with pytest.raises(ValueError, match=r"focus's classifier\.weight reaches 1e\+05"):
        model.save_pretrained(tmp_path / "m", dtype=torch.float16)
    assert not (tmp_path / "m").exists()
    with pytest.raises(ValueError, match="int8"):
        model.save_pretrained(tmp_path / "m", dtype=torch.int8)


def test_a_network_without_a_name_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="focus network has no name"):
        tiny_classifier(glance_name="tiny").save_pretrained(tmp_path / "m")


def test_a_save_that_was_cut_short_is_noticed(
    classifier: TwoStageClassifier, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up after the first file of a second save over the first one."""
    other = TwoStageClassifier.from_pretrained(folder, fold=False)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    real_replace, calls = os.replace, []

    def replace(source: str, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        real_replace(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError, match="No space"):
        other.save_pretrained(folder)
    monkeypatch.undo()
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(after) == set(before)  # no temporary file is left
    assert sum(after[name] != before[name] for name in after) == 1
    with pytest.raises(ValueError, match=r"anchor\.safetensors is corrupt or of another save"):
        TwoStageClassifier.from_pretrained(folder)
    other.save_pretrained(folder)  # and the next save repairs it
    TwoStageClassifier.from_pretrained(folder)


def test_files_follow_the_umask(folder: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask, path


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_corrupt_file_is_named(folder: Path, damage: str) -> None:
    path = folder / "focus.safetensors"
    blob = bytearray(path.read_bytes())
    if damage == "flip":
        blob[-10] ^= 1
    path.write_bytes(bytes(blob[: {"truncate": 1000, "empty": 0}.get(damage, len(blob))]))
    with pytest.raises(ValueError, match=r"focus\.safetensors is corrupt"):
        TwoStageClassifier.from_pretrained(folder)


@pytest.mark.parametrize("name", ["config.json", "glance.safetensors"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name.replace(".", r"\.")):
        TwoStageClassifier.from_pretrained(folder)


def test_a_missing_folder_lists_the_bundled_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(storage, "PRETRAINED", folder.parent)
    assert storage.bundled_models() == ["one"]
    with pytest.raises(FileNotFoundError, match=r"nor one of the bundled models \(one\)"):
        TwoStageClassifier.from_pretrained(tmp_path / "nowhere")
    assert TwoStageClassifier.from_pretrained("one").class_names == ("cat", "dog", "ibis æ")


def test_a_newer_format_says_so(folder: Path) -> None:
    edit(folder, format_version=storage.FORMAT_VERSION + 1)
    with pytest.raises(ValueError, match=r"format version 3.*update the package"):
        TwoStageClassifier.from_pretrained(folder)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"format": "something else"}, "does not describe"),
        ({"format_version": "1"}, "format version '1'"),
        ({"format_version": True}, "format version True"),
        ({"class_names": ["cat", "dog"]}, "2 class names for networks of 3 classes"),
        ({"num_classes": 4, "class_names": None}, "does not fit"),
        ({"num_classes": None}, "wrong type"),
        ({"glance": {"backbone": "resnet1"}}, "resnet1"),
        ({"focus": {"backbone": "squeezenet1_1"}}, "does not fit"),
        ({"glance": {}}, "no entry 'backbone'"),
        ({"policy": ExitPolicy((0.5,)).to_dict()}, "need 3 thresholds, got 1"),
        ({"policy": [0.5]}, "does not describe an anchornet_ext exit policy"),
        ({"policy": {**ExitPolicy((0.5,) * 3).to_dict(), "answer": 1}}, "answer must be"),
        ({"format_version": 1, "thresholds": [0.5]}, "need 3 thresholds, got 1"),
        ({"format_version": 1}, "no entry 'thresholds'"),
        ({"preprocessing": {"sharpness": 1}}, "sharpness"),
        ({"num_patches": 0}, "num_patches"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_configuration_that_does_not_fit(
    folder: Path, entries: dict[str, Any], message: str
) -> None:
    edit(folder, **entries)
    with pytest.raises(ValueError, match=message):
        TwoStageClassifier.from_pretrained(folder)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[1]"])
def test_a_configuration_that_is_none(folder: Path, text: bytes) -> None:
    (folder / "config.json").write_bytes(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        TwoStageClassifier.from_pretrained(folder)


def test_a_file_with_the_right_checksum_that_is_no_safetensors(folder: Path) -> None:
    import hashlib

    path = folder / "anchor.safetensors"
    path.write_bytes(b"not tensors")
    files = json.loads((folder / "config.json").read_text())["files"]
    digest = hashlib.sha256(b"not tensors").hexdigest()
    edit(folder, files=files | {path.name: {"bytes": 11, "sha256": digest}})
    with pytest.raises(ValueError, match="not a safetensors file"):
        TwoStageClassifier.from_pretrained(folder)


def test_stored_names_are_the_modules_own(folder: Path, classifier: TwoStageClassifier) -> None:
    """Other tools can read the files: plain state dicts in plain safetensors."""
    stored = safetensors.torch.load_file(folder / "glance.safetensors")
    assert set(stored) == set(classifier.glance.state_dict())

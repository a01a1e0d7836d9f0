"""Backbones by name: every family, new classifiers, pretrained weights, and sizes."""

from __future__ import annotations

import sys
from urllib.error import URLError

import pytest
import torch
import torchvision
from torchvision.models import WeightsEnum, get_model, get_model_builder

from anchornet_ext.models.backbones import build_backbone, require_input_size


def one_of_each_family() -> list[str]:
    """One name of each of torchvision's files: a family has one kind of classifier."""
    # Small ones where the alphabetically first is large.
    families = {
        get_model_builder(name).__module__: name
        for name in ("resnet18", "swin_t", "convnext_tiny", "regnet_y_400mf", "vgg11")
    }
    for name in torchvision.models.list_models(module=torchvision.models):
        families.setdefault(get_model_builder(name).__module__, name)
    return list(families.values())


FAMILIES = one_of_each_family()
FIXED_SIZE = ("vit_b_16", "maxvit_t")


def test_the_families_are_the_known_ones():
    assert {"densenet121", "inception_v3", "squeezenet1_0", "vit_b_16", "regnet_y_400mf"} <= set(
        FAMILIES
    )
    assert len(FAMILIES) >= 16


@pytest.mark.parametrize("name", FAMILIES)
def test_pretrained_weights_get_a_new_classifier(name, monkeypatch):
    """The whole way of torchvision's loading, without the download and mostly without weights."""
    files = []

    def released_weights(self, *_args, **_kwargs):
        files.append(self.url)
        return get_model(name, weights=None, num_classes=1000).state_dict()

    monkeypatch.setattr(WeightsEnum, "get_state_dict", released_weights)
    # RegNet reads numbers from tensors while it is built.
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        model = build_backbone(name, 7, pretrained=True)
        assert len(files) == 1
        original = build_backbone(name, 1000, pretrained=True)
        options = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}
        same = get_model(name, weights=None, num_classes=7, **options)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert shapes == {key: value.shape for key, value in same.state_dict().items()}
    changed = [k for k, v in original.state_dict().items() if v.shape != shapes[k]]
    assert 1 <= len(changed) <= 2  # weight and bias of one layer
    if name not in FIXED_SIZE:
        require_input_size(model, 95)
        logits = model.eval().to("meta")(torch.empty(2, 3, 95, 95, device="meta"))
        assert logits.shape == (2, 7)


@pytest.mark.parametrize("name", FIXED_SIZE)
def test_networks_of_one_size_say_so(name):
    with torch.device("meta"):
        model = build_backbone(name, 7)
    require_input_size(model, 224)
    with pytest.raises(ValueError, match=r"does not take images of 3x95x95: .+"):
        require_input_size(model, 95)


def test_a_size_check_leaves_the_network_alone():
    model = build_backbone("mobilenet_v3_small", 7)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    require_input_size(model, (95, 120))
    with pytest.raises(ValueError, match="4x95x95"):
        require_input_size(model, 95, in_channels=4)
    assert model.training
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_pretrained_weights_are_read_from_torch_hub_folder(tmp_path, monkeypatch):
    """The real loader, on a file under the name that torchvision downloads to."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = torchvision.models.get_model_weights("squeezenet1_1").DEFAULT.url
    source = get_model("squeezenet1_1", weights=None)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(source.state_dict(), folder / url.rsplit("/", 1)[1])
    model = build_backbone("squeezenet1_1", 7, pretrained=True)
    state = model.state_dict()
    for key, value in source.state_dict().items():
        if not key.startswith("classifier"):
            assert torch.equal(state[key], value), key
    assert state["classifier.1.weight"].shape == (7, 512, 1, 1)
    with torch.no_grad():
        assert model.eval()(torch.zeros(2, 3, 95, 95)).shape == (2, 7)


def test_a_failed_download_says_what_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def fail(*_args, **_kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(RuntimeError, match=r"'squeezenet1_1'.*no route to host.*pretrained=False"):
        build_backbone("squeezenet1_1", 7, pretrained=True)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_no_auxiliary_classifiers_in_training_either(name):
    with torch.device("meta"):
        model = build_backbone(name, 7)
        assert model.train()(torch.empty(2, 3, 95, 95)).shape == (2, 7)


def test_timm():
    model = build_backbone("timm/mobilenetv3_small_050", 7).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 95, 95)).shape == (1, 7)
    with pytest.raises(ValueError, match=r"timm has no .*'resnet51'.*resnet50"):
        build_backbone("timm/resnet51", 7)


def test_missing_timm_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="pip install timm"):
        build_backbone("timm/resnet50", 7)


@pytest.mark.parametrize(
    ("name", "num_classes", "match"),
    [
        ("resnet51", 10, r"no classification model named 'resnet51'.*resnet50"),
        ("fcn_resnet50", 10, r"named 'fcn_resnet50'"),  # segmentation
        ("", 10, "named ''"),
        ("resnet18", 0, "num_classes"),
    ],
)
def test_wrong_arguments_are_refused(name, num_classes, match):
    with pytest.raises(ValueError, match=match):
        build_backbone(name, num_classes)

"""Released checkpoints, on files written in their layout."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from anchornet_ext.models import AnchorNet, load_released_anchornet, load_released_classifier

# The released layout, written down layer by layer: (in, expanded, out, squeezed) of each block.
BLOCKS = [
    (16, 16, 16, 4),
    (16, 48, 24, 4),
    (24, 96, 24, 6),
    (24, 96, 48, 6),
    (48, 96, 96, 12),
    (96, 144, 96, 24),
    (96, 144, 96, 24),
]


def norm(name: str, channels: int) -> dict[str, torch.Tensor]:
    return {
        f"{name}.weight": torch.rand(channels) + 0.5,
        f"{name}.bias": torch.randn(channels),
        f"{name}.running_mean": torch.randn(channels),
        f"{name}.running_var": torch.rand(channels) + 0.5,
        f"{name}.num_batches_tracked": torch.tensor(7),
    }


def released_state(num_classes: int = 1000) -> dict[str, torch.Tensor]:
    state = {"conv1.weight": torch.randn(16, 3, 3, 3), **norm("bn1", 16)}
    for i, (width, expanded, out, squeezed) in enumerate(BLOCKS):
        block = f"bneck.{i}"
        state |= {
            f"{block}.conv1.weight": torch.randn(expanded, width, 1, 1),
            **norm(f"{block}.bn1", expanded),
            f"{block}.conv2.weight": torch.randn(expanded, 1, 3, 3),
            **norm(f"{block}.bn2", expanded),
            f"{block}.se.se1.weight": torch.randn(squeezed, expanded, 1, 1),
            f"{block}.se.se1.bias": torch.randn(squeezed),
            f"{block}.se.se2.weight": torch.randn(expanded, squeezed, 1, 1),
            f"{block}.se.se2.bias": torch.randn(expanded),
            f"{block}.conv3.weight": torch.randn(out, expanded, 1, 1),
            **norm(f"{block}.bn3", out),
        }
    return state | {
        "exp_conv.weight": torch.randn(512, 96, 1, 1),
        "exp_conv.bias": torch.randn(512),
        "fc.weight": torch.randn(num_classes, 512),
        "fc.bias": torch.randn(num_classes),
    }


def forward_released(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The released network written with functions on the released names."""

    def conv(name, x, **options):
        return nn.functional.conv2d(
            x, state[f"{name}.weight"], state.get(f"{name}.bias"), **options
        )

    def bn(name, x):
        names = ("running_mean", "running_var", "weight", "bias")
        return nn.functional.batch_norm(x, *(state[f"{name}.{n}"] for n in names))

    silu = nn.functional.silu
    x = silu(bn("bn1", conv("conv1", x, stride=2)))
    for i, (width, expanded, out_width, _) in enumerate(BLOCKS):
        block, stride = f"bneck.{i}", 2 if i < 2 else 1
        out = x
        if i > 0:
            out = silu(bn(f"{block}.bn1", conv(f"{block}.conv1", x)))
        out = silu(bn(f"{block}.bn2", conv(f"{block}.conv2", out, stride=stride, groups=expanded)))
        gate = silu(conv(f"{block}.se.se1", out.mean((2, 3), keepdim=True)))
        out = out * conv(f"{block}.se.se2", gate).sigmoid()
        out = bn(f"{block}.bn3", conv(f"{block}.conv3", out))
        x = out + x[:, :, :-2, :-2] if stride == 1 and width == out_width else out
    x = conv("exp_conv", x).mean((2, 3))
    return x @ state["fc.weight"].T + state["fc.bias"]


def test_the_layout_has_the_published_number_of_parameters():
    counted = ("running_mean", "running_var", "num_batches_tracked")
    state = released_state()
    assert sum(v.numel() for k, v in state.items() if not k.endswith(counted)) == 674_984


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("wrapped", [False, True])
def test_anchornet_computes_what_the_released_network_computes(tmp_path, prefix, wrapped):
    torch.manual_seed(0)
    state = released_state(num_classes=12)
    content = {prefix + key: value for key, value in state.items()}
    if wrapped:
        content = {"net": content, "acc": 0.5, "epoch": 99, "optimizer": {"state": {}}}
    torch.save(content, tmp_path / "anchornet.pth")
    model = load_released_anchornet(tmp_path / "anchornet.pth")
    assert model.num_classes == 12
    assert model.skip == "top_left"
    assert not model.training
    images = torch.randn(2, 3, 111, 119, dtype=torch.float64)
    expected = forward_released(
        {k: v.double() if v.is_floating_point() else v for k, v in state.items()}, images
    )
    with torch.no_grad():
        torch.testing.assert_close(model.double()(images), expected, rtol=1e-9, atol=1e-9)


def test_problems_are_listed_in_released_names(tmp_path):
    state = released_state(10)
    del state["bneck.3.se.se1.bias"]
    state["bneck.9.conv1.weight"] = torch.zeros(1)
    state["exp_conv.weight"] = torch.zeros(512, 64, 1, 1)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ValueError) as caught:
        load_released_anchornet(tmp_path / "a.pth")
    message = str(caught.value)
    assert "missing: bneck.3.se.se1.bias" in message
    assert "unexpected: bneck.9.conv1.weight" in message
    assert "(512, 64, 1, 1) instead of (512, 96, 1, 1)" in message


def small_classifier() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(5))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_classifier_is_loaded_and_described(tmp_path, prefix):
    source, target = small_classifier(), small_classifier()
    images = torch.randn(2, 3, 8, 8)
    source.train()(images)  # real statistics
    target(images)
    state = {prefix + key: value for key, value in source.state_dict().items()}
    optimizer = torch.optim.SGD(source.parameters(), lr=0.1).state_dict()
    torch.save({"net": state, "acc": 0.7538, "epoch": 28, "optimizer": optimizer}, tmp_path / "c")
    info = load_released_classifier(target, tmp_path / "c")
    assert info == (0.7538, 28)
    torch.testing.assert_close(target.eval()(images), source.eval()(images))


def test_a_classifier_that_does_not_fit_stays_as_it_was(tmp_path):
    model = nn.Linear(3, 2)
    before = model.weight.clone()
    torch.save({"net": {"weight": torch.zeros(2, 3), "extra": torch.zeros(1)}}, tmp_path / "c")
    with pytest.raises(ValueError, match=r"Linear; missing: bias; unexpected: extra"):
        load_released_classifier(model, tmp_path / "c")
    assert torch.equal(model.weight, before)


class Forbidden:
    """Would run code when unpickled."""

    def __reduce__(self):
        return (print, ("unpickled",))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"net": Forbidden()}, "plain weights"),
        ([1, 2], "a list"),
        ({}, "not a state dict"),
        ({"net": {"weight": 3}}, "'weight' is a int"),
        ({"conv1.weight": torch.zeros(1)}, "fc.weight"),
    ],
)
def test_other_files_are_refused(tmp_path, content, match, capsys):
    torch.save(content, tmp_path / "file")
    with pytest.raises(ValueError, match=match):
        load_released_anchornet(tmp_path / "file")
    assert "unpickled" not in capsys.readouterr().out


def test_files_that_torch_did_not_write_are_refused(tmp_path):
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").touch()
    (tmp_path / "pickle").write_bytes(pickle.dumps(Forbidden()))
    for name in ("text", "empty", "pickle"):
        with pytest.raises(ValueError, match="plain weights"):
            load_released_classifier(nn.Linear(1, 1), tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load_released_anchornet(tmp_path / "nowhere")


def test_our_own_state_dict_is_not_taken_for_a_released_one(tmp_path):
    torch.save(AnchorNet(5).state_dict(), tmp_path / "ours")
    with pytest.raises(ValueError, match=r"fc\.weight"):
        load_released_anchornet(tmp_path / "ours")

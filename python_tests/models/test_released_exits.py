"""Files in the layout of RANet's and MSDNet's public code give its logits here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from released_layout import Weights, released_msdnet, released_ranet
from tiny_networks import noise
from torch import Tensor

from anchornet_ext.models.exits import ExitNetwork
from anchornet_ext.models.msdnet import MSDNetConfig
from anchornet_ext.models.ranet import RANetConfig
from anchornet_ext.models.released_exits import load_released_msdnet, load_released_ranet

CLASSES = 6


def ranet(
    scales: tuple[int, ...], factors: tuple[int, ...], step: int, spacing: str, stem: str
) -> tuple[Weights, Tensor, Tensor, Callable[[Path], ExitNetwork]]:
    """Weights in the released layout, images, their logits, and what loads the weights."""
    config = RANetConfig(
        scales=scales,
        factors=factors,
        bottlenecks=factors,
        step=step,
        spacing=spacing,
        channels=5,
        growth=6,
        stem=stem,
    )
    blocks = range(1, 2 * len(scales) + 1)
    layers = tuple(step if spacing == "even" else step * b for b in blocks)
    # A side that leaves 8 pixels at the lowest resolution.
    side = 8 * 2 ** (scales[-1] - 1) * (4 if stem == "large" else 1)
    images, weights = noise(2, (side, side), seed=0).double(), Weights()
    logits = released_ranet(
        images,
        weights,
        CLASSES,
        scales=scales,
        factors=factors,
        layers=layers,
        channels=5,
        growth=6,
        large=stem == "large",
    )
    return weights, images, torch.stack(logits), lambda path: load_released_ranet(path, config)


def msdnet(
    factors: tuple[int, ...], base: int, step: int, spacing: str, stem: str
) -> tuple[Weights, Tensor, Tensor, Callable[[Path], ExitNetwork]]:
    """As `ranet`."""
    config = MSDNetConfig(
        blocks=4,
        base=base,
        step=step,
        spacing=spacing,
        channels=5,
        growth=4,
        factors=factors,
        bottlenecks=factors,
        stem=stem,
    )
    further = [step if spacing == "even" else step * i + 1 for i in (1, 2, 3)]
    side = 8 * 2 ** (len(factors) - 1) * (4 if stem == "large" else 1)
    images, weights = noise(2, (side, side), seed=0).double(), Weights()
    logits = released_msdnet(
        images,
        weights,
        CLASSES,
        factors=factors,
        layers=(base, *further),
        channels=5,
        growth=4,
        large=stem == "large",
    )
    return weights, images, torch.stack(logits), lambda path: load_released_msdnet(path, config)


CASES = {
    "ranet": lambda: ranet((1, 2, 3, 3), (4, 2, 1, 1), 2, "even", "small"),
    "ranet-growing": lambda: ranet((1, 2, 3), (4, 2, 1), 1, "growing", "small"),
    "ranet-large": lambda: ranet((1, 2), (2, 1), 3, "even", "large"),
    "msdnet": lambda: msdnet((1, 2, 4), 3, 2, "even", "small"),
    "msdnet-growing": lambda: msdnet((1, 2, 4), 1, 1, "growing", "small"),
    "msdnet-large": lambda: msdnet((1, 2, 4, 4), 1, 1, "even", "large"),
}


@pytest.mark.parametrize("name", CASES)
def test_gives_the_logits_of_the_public_code(name: str, tmp_path: Path) -> None:
    weights, images, logits, load = CASES[name]()
    # As its training writes them.
    content = {
        "epoch": 299,
        "arch": name,
        "state_dict": {f"module.{key}": value for key, value in weights.state.items()},
        "best_prec1": torch.tensor(93.0),
        "optimizer": {"state": {}, "param_groups": []},
    }
    torch.save(content, tmp_path / "model_best.pth.tar")
    network = load(tmp_path / "model_best.pth.tar")
    assert not network.training
    assert network.num_classes == CLASSES
    with torch.no_grad():
        torch.testing.assert_close(network.double()(images), logits, rtol=1e-4, atol=1e-4)
    # Every weight of the file is in the network: nothing else could tell that from the logits.
    kept = sum(value.numel() for value in network.state_dict().values())
    assert kept == sum(value.numel() for value in weights.state.values())


@pytest.mark.parametrize("name", ["ranet-growing", "msdnet-growing"])
def test_bare_state_dict_without_counters(name: str, tmp_path: Path) -> None:
    weights, images, logits, load = CASES[name]()
    state = {k: v for k, v in weights.state.items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "weights.pth")
    with torch.no_grad():
        got = load(tmp_path / "weights.pth").double()(images)
    torch.testing.assert_close(got, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["ranet-growing", "msdnet-growing"])
def test_what_does_not_fit_is_named(name: str, tmp_path: Path) -> None:
    weights, _, _, load = CASES[name]()
    path = tmp_path / "weights.pth"
    state: dict[str, Any] = dict(weights.state)
    dropped = next(key for key in state if "conv_normal" in key)
    del state[dropped]
    state["extra.weight"] = torch.zeros(1)
    state["classifier.1.linear.bias"] = torch.zeros(CLASSES + 1)
    torch.save(state, path)
    with pytest.raises(ValueError) as error:
        load(path)
    for wanted in (f"missing: {dropped}", "unexpected: extra.weight", "of another shape"):
        assert wanted in str(error.value)


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_released_ranet(tmp_path / "none.pth", RANetConfig())
    path = tmp_path / "weights.pth"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="plain weights"):
        load_released_msdnet(path, MSDNetConfig())
    torch.save({"fc.weight": torch.zeros(2, 3)}, path)
    with pytest.raises(ValueError, match=r"classifier\.0\.linear\.weight"):
        load_released_ranet(path, RANetConfig())

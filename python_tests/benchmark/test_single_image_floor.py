"""benchmarks/single_image_floor.py: what it counts, and that it runs."""

from __future__ import annotations

import pytest
from benchmark_scripts import load_script
from torch import nn

from anchornet_ext._machine import using_threads
from anchornet_ext.models import build_backbone, count_macs


def test_layers_have_their_bytes_and_multiply_adds() -> None:
    script = load_script("single_image_floor")
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5)
    )
    first, second = script.layers_of(network, 9)
    assert (first.name, first.num_bytes, first.macs) == ("0", 4 * 216, 216 * 16)
    assert (second.name, second.num_bytes, second.macs) == ("3", 4 * 640, 640)
    assert not any(module._forward_hooks for module in network.modules())
    whole = build_backbone("resnet18", 10).eval()
    assert sum(layer.macs for layer in script.layers_of(whole, 64)) == count_macs(
        whole, (3, 64, 64)
    )


@pytest.mark.parametrize(("read", "multiplied", "seconds"), [(10, 1e3, 40.0), (1e6, 2, 1e3)])
def test_the_floor_is_the_longer_one(read: float, multiplied: float, seconds: float) -> None:
    layer = load_script("single_image_floor").Layer("a", 400, 2000)
    assert layer.floor(read, multiplied) == seconds


def test_it_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    script = load_script("single_image_floor")
    monkeypatch.setattr(script, "keep_freed_memory", lambda: None)  # there is no way back
    with using_threads():
        script.main(
            ["--backbone", "mobilenet_v3_small", "--size", "64", "--rounds", "1", "--layers"]
        )
    text = capsys.readouterr().out
    assert "mobilenet_v3_small, one image of 64x64" in text
    assert "classifier.3" in text
    assert "% of the floor's speed" in text
    with pytest.raises(SystemExit):
        script.main(["--rounds", "0"])

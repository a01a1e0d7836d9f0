"""Compiled networks on the CPU: by inductor itself, which takes seconds, so there are few."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from test_tuning import assert_close, compiled_graphs, outputs
from tiny_networks import noise
from torch import Tensor, nn

from anchornet_ext.models import build_backbone
from anchornet_ext.models.native_calls import has_fast_kernels
from anchornet_ext.models.tuning import tune


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Activations(nn.Module):
    """Convolutions with all that oneDNN makes a number of NaN in, and one on small maps."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, 32, 3, padding=1)
            self.branches = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1) for _ in range(5))
            self.last = nn.Conv2d(32, 32, 3, stride=3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        a, b, c, d, e = (branch(x) for branch in self.branches)
        parts = [a.relu(), (b + x).relu(), nn.functional.relu6(c), nn.functional.hardsigmoid(d)]
        small: Tensor = self.last(sum([*parts, nn.functional.hardtanh(e)]))
        return small.relu()


def test_compiled_what_is_no_number_stays_none() -> None:
    network = Activations().eval()
    images = noise(9, (18, 18), seed=0)
    images[4, 0, 7, 8] = float("nan")
    expected = outputs(network, images)
    assert expected[4].isnan().any()
    tuned = tune(network, compile=True)
    assert tuned._compiled is None
    found = outputs(tuned, images)
    assert tuned._compiled is not None
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_small_maps_are_convolved_by_our_operator_in_compiled_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whose weights' order is computed while the code is made, as they are frozen."""
    if not has_fast_kernels():
        pytest.skip("this processor has no fast kernels for small maps")
    graphs = compiled_graphs(monkeypatch)
    network = Activations().eval()
    images = noise(9, (18, 18), seed=0)
    found = outputs(tune(network, compile=True), images)
    torch.testing.assert_close(found, outputs(network, images), rtol=1e-4, atol=1e-5)
    targets = [str(node.target) for graph in graphs for node in graph.nodes]
    assert [t for t in targets if "convolve_maps" in t] == ["anchornet_ext.convolve_maps.default"]


@pytest.mark.parametrize(
    ("name", "batch"), [("mobilenet_v3_small", 9), ("resnet18", 2), ("densenet121", 9)]
)
def test_what_our_operators_do_faster_is_not_compiled(name: str, batch: int) -> None:
    if not has_fast_kernels():
        pytest.skip("this processor has no fast kernels for these networks")
    network = build_backbone(name, 3).eval()
    images = noise(batch, (64, 64), seed=1)
    tuned = tune(network, compile=True)
    assert torch.equal(outputs(tuned, images), outputs(tune(network), images))
    assert tuned.is_compiled
    assert tuned._compiled is None


def test_new_weights_are_compiled_anew() -> None:
    """As they are frozen: written to, replaced, or those of another module."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten()).eval()
    images = noise(9, (8, 8), seed=0)
    tuned = tune(network, compile=True)
    assert_close(outputs(tuned, images), outputs(network, images))
    other = nn.Conv2d(3, 4, 3)
    for change in (
        lambda: tuned.load_state_dict({f"network.0.{k}": v for k, v in other.state_dict().items()}),
        lambda: setattr(tuned.network, "0", nn.Conv2d(3, 4, 3)),
    ):
        change()
        found = outputs(tuned, images)
        assert tuned._compiled is not None
        assert_close(found, outputs(copy.deepcopy(tuned.network), images))

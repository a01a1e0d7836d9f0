"""A network as one call of the operator is the network, whatever its modules went through."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from operator_calls import count_calls
from statistics_of_norms import build
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional
from watched_calls import compiled, counted, traced

from anchornet_ext.models import residual_runs, whole_network
from anchornet_ext.models.tuning import TunedNetwork, tune
from anchornet_ext.models.whole_network import WholeNetwork


@pytest.fixture(autouse=True)
def on_avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the operator would be used, on any processor."""
    monkeypatch.setattr(residual_runs, "has_fast_kernels", lambda: True)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every call of the operator for a whole network."""
    return count_calls(monkeypatch, whole_network, "inverted_residuals")


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def built() -> nn.Module:
    return build("mobilenet_v3_small", 10)


@pytest.fixture
def pair(built: nn.Module) -> tuple[nn.Module, TunedNetwork]:
    return copy.deepcopy(built), tune(built)


def assert_same(tuned: nn.Module, plain: nn.Module, x: Tensor, bound: float = 1e-4) -> None:
    with torch.no_grad():
        got, expected = tuned(x), plain(x)
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=bound, atol=bound * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("mobilenet_v3_small", True),
        ("mobilenet_v2", True),
        ("efficientnet_b0", True),
        ("timm/mobilenetv3_small_050", True),  # a convolution and its activation after the mean
        ("timm/efficientnet_lite0", True),
        ("mnasnet0_5", False),  # blocks of a class that is not known
        ("resnet18", False),
    ],
)
@pytest.mark.parametrize("classes", [10, 300])  # a classifier with packed weights or without
def test_networks(name: str, is_one: bool, classes: int, calls: list[int]) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    plain = build(name, classes)
    tuned = tune(plain)
    for batch, size in ((1, 64), (3, 97)):
        assert_same(tuned, plain, images(batch, 3, size, size))
    assert len(calls) == 2 * is_one


def test_batches_and_layouts(pair: Any, calls: list[int]) -> None:
    plain, tuned = pair
    x = images(70, 3, 33, 40)
    assert_same(tuned, plain, x)
    with torch.inference_mode():
        together = tuned(x)
        assert together.is_contiguous()
        assert torch.equal(together, torch.cat([tuned(one[None]) for one in x]))
    assert len(calls) == 72
    assert tuned(x[:0]).shape == (0, 10)
    assert len(calls) == 72


def test_an_image_that_is_no_number_stays_one(pair: Any) -> None:
    _, tuned = pair
    x = images(3, 3, 40, 40)
    x[1, 0, 20, 20] = torch.nan
    out = tuned(x)
    assert out[1].isnan().all()
    assert out[[0, 2]].isfinite().all()


def test_weights_that_change(pair: Any, calls: list[int]) -> None:
    plain, tuned = pair
    plain = copy.deepcopy(tuned.network)  # its norms folded
    x = images(2, 3, 40, 40)
    assert_same(tuned, plain, x)
    state = {name: value * 1.05 for name, value in plain.state_dict().items()}
    for network in (plain, tuned.network):
        network.load_state_dict(state)
    assert_same(tuned, plain, x)
    for network in (plain, tuned.network):
        network.classifier[0].weight.mul_(2)
        network.classifier[3].bias = nn.Parameter(torch.arange(10.0), requires_grad=False)
    assert_same(tuned, plain, x)
    assert len(calls) == 3
    for network in (plain, tuned.network):
        network.features[4].double()
        with pytest.raises(RuntimeError, match="type"):
            network(x)
    with pytest.raises(RuntimeError, match="type"):
        tuned(x)
    for network in (plain, tuned.network):
        network.features[4].float()
    assert_same(tuned, plain, x)
    assert len(calls) == 4
    assert_same(tuned.double(), plain.double(), x.double())
    assert len(calls) == 4
    assert_same(tuned.float(), plain.float(), x)
    assert len(calls) == 5


def test_modules_that_change(pair: Any, calls: list[int]) -> None:
    _, tuned = pair
    plain = copy.deepcopy(tuned.network)
    x = images(2, 3, 70, 70)
    assert_same(tuned, plain, x)
    for network in (plain, tuned.network):
        features = network.features
        features[5], features[6] = features[6], features[5]  # both of 40 channels
    assert_same(tuned, plain, x)
    assert len(calls) == 2
    for network in (plain, tuned.network):
        network.classifier[1] = nn.Tanh()
    assert_same(tuned, plain, x)
    for network in (plain, tuned.network):
        network.avgpool = nn.AdaptiveMaxPool2d(1)
        network.classifier[1] = nn.ReLU().eval()
    assert_same(tuned, plain, x)
    assert len(calls) == 2
    for network in (plain, tuned.network):
        network.avgpool = nn.AdaptiveAvgPool2d(1)
    assert_same(tuned, plain, x)
    assert len(calls) == 3


def test_copies_have_their_own(pair: Any, calls: list[int]) -> None:
    plain, tuned = pair
    x = images(1, 3, 40, 40)
    assert_same(tuned, plain, x)
    copied = copy.deepcopy(tuned)
    tuned.network.classifier[3].weight.zero_()
    assert_same(copied, plain, x)
    assert_same(tune(copied), plain, x)
    assert len(calls) == 3


@pytest.mark.parametrize("hooked", ["", "avgpool", "classifier.2", "features.4.block.0.0"])
def test_hooks_are_called(pair: Any, calls: list[int], hooked: str) -> None:
    plain, tuned = pair
    x = images(1, 3, 40, 40)
    assert_same(tuned, plain, x)
    seen: list[Any] = []
    module = tuned.network.get_submodule(hooked)
    handle = module.register_forward_hook(lambda module, arguments, out: seen.append(out))
    assert_same(tuned, plain, x)
    assert (len(seen), len(calls)) == (1, 1)
    handle.remove()
    assert_same(tuned, plain, x)
    assert (len(seen), len(calls)) == (1, 2)


def test_hooks_of_all_modules(pair: Any, calls: list[int]) -> None:
    _, tuned = pair
    seen: list[Any] = []
    handle = nn.modules.module.register_module_forward_hook(lambda *given: seen.append(given[0]))
    tuned(images(1, 3, 40, 40))
    handle.remove()
    assert tuned.network.avgpool in seen
    assert calls == []


@pytest.mark.parametrize("name", ["", "classifier.2", "features.4"])
def test_in_training_mode_it_is_the_network(pair: Any, calls: list[int], name: str) -> None:
    _, tuned = pair
    x = images(4, 3, 40, 40)
    tuned(x)
    tuned.network.get_submodule(name).train()
    with torch.random.fork_rng(devices=[]):
        different = not torch.equal(tuned(x), tuned(x))
    assert different == (name != "features.4")  # those that have dropout
    assert len(calls) == 1


def _under_autocast(tuned: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        out: Tensor = tuned(x)
    return out.float()


def _exported(tuned: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = torch.export.export(tuned, (x,)).module()(x)
    return out


@pytest.mark.parametrize("run", [_under_autocast, counted, compiled, traced, _exported])
def test_where_it_is_the_network(
    pair: Any, calls: list[int], run: Callable[[nn.Module, Tensor], Tensor]
) -> None:
    plain, tuned = pair
    x = images(2, 3, 40, 40)
    got, expected = run(tuned, x), plain(x)
    bound = 2e-1 if run is _under_autocast else 1e-4
    assert (got - expected).abs().max() <= bound * expected.abs().max()
    assert calls == []


def test_gradients_and_tangents_are_not_lost(built: nn.Module, calls: list[int]) -> None:
    network = tune(built).network
    whole = WholeNetwork(network)
    x = images(1, 3, 40, 40)
    assert whole.run(x) is not None
    with forward_ad.dual_level():
        assert whole.run(forward_ad.make_dual(x, torch.ones_like(x))) is None
    assert whole.run(x.requires_grad_()) is None
    network.requires_grad_(True)
    assert whole.run(x.detach()) is None
    with torch.no_grad():
        assert whole.run(x.detach()) is not None
    assert len(calls) == 2


def test_usual_errors(pair: Any, calls: list[int]) -> None:
    _, tuned = pair
    with pytest.raises(RuntimeError, match=r"expected input.* to have 3 channels"):
        tuned(images(1, 4, 40, 40))
    with pytest.raises(RuntimeError, match=r"expected|Expected|channels_last|4D"):
        tuned(images(40, 40))
    tuned.network.classifier[0] = nn.Linear(575, 1024)
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        tuned(images(1, 3, 40, 40))
    assert calls == []


class Own(nn.Module):
    """With features and a classifier of torchvision's, and its own way through them."""

    def __init__(self, network: nn.Module, way: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.features, self.classifier = network.features, network.classifier
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.act = nn.Hardswish()
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x)


def _ways() -> Iterator[tuple[bool, Callable[[Any, Tensor], Tensor]]]:
    """Ways through a network, and whether each is one run of layers."""
    yield True, lambda n, x: n.classifier(n.features(x).mean((2, 3)))
    yield True, lambda n, x: n.classifier(n.features(x).mean([-2, -1], keepdim=True).flatten(1))
    yield True, lambda n, x: n.classifier(torch.mean(n.features(x), dim=(2, 3)))
    yield True, lambda n, x: n.classifier(n.pool(n.features(x)).flatten(start_dim=1))
    yield True, lambda n, x: n.features(x).mean((2, 3))
    yield (
        True,
        lambda n, x: functional.dropout(
            functional.adaptive_avg_pool2d(n.features(x), 1).flatten(1), training=n.training
        ),
    )
    yield False, lambda n, x: n.features(x)
    yield False, lambda n, x: n.pool(n.features(x))
    yield False, lambda n, x: n.features(x).mean((1, 2))
    yield False, lambda n, x: n.classifier(n.features(x).mean((2, 3))) + 1
    yield False, lambda n, x: n.classifier(n.features(x * 2).mean((2, 3)))
    yield False, lambda n, x: n.classifier(n.act(n.features(x).mean((2, 3))))
    yield False, lambda n, x: n.classifier(n.act(n.pool(n.features(x))).flatten(1))
    yield False, lambda n, x: n.classifier(n.features(n.features(x)[:, :3]).mean((2, 3)))
    yield False, lambda n, x: n.classifier(functional.dropout(n.features(x).mean((2, 3)), 0.0))
    yield False, lambda n, x: functional.adaptive_avg_pool2d(n.features(x), 2).flatten(1)
    yield False, lambda n, x: n.pool(n.features(x)).flatten(2)
    yield False, lambda n, x: n.features(x).flatten(1)
    yield False, lambda n, x: (lambda y: n.classifier(y.mean((2, 3))) * y.mean())(n.features(x))


@pytest.mark.parametrize(("is_one", "way"), [*_ways()])
def test_other_ways_through_a_network(
    built: nn.Module, calls: list[int], is_one: bool, way: Callable[[Any, Tensor], Tensor]
) -> None:
    network = Own(copy.deepcopy(built), way).eval()
    assert_same(tune(network), network, images(2, 3, 64, 64))
    assert len(calls) == is_one

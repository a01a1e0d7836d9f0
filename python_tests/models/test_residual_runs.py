"""A fused sequence is the sequence, whatever its modules went through."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import statistics_of_norms
import torch
from operator_calls import count_calls
from torch import Tensor, nn
from torch.autograd import forward_ad
from watched_calls import compiled, counted, traced

from anchornet_ext.models import residual_runs
from anchornet_ext.models.norm_folding import fold_batch_norms
from anchornet_ext.models.residual_runs import FusedSequential, fuse_inverted_residuals
from anchornet_ext.models.tuning import tune


@pytest.fixture(autouse=True)
def on_avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the operator would be used, on any processor."""
    monkeypatch.setattr(residual_runs, "has_fast_kernels", lambda: True)


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def build(name: str) -> nn.Module:
    """With its norms folded."""
    network = statistics_of_norms.build(name, 10)
    fold_batch_norms(network)
    return network


@pytest.fixture(scope="module")
def built() -> nn.Module:
    return build("mobilenet_v3_small")


@pytest.fixture
def pair(built: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The features of a network and their fused copy."""
    plain, fused = (copy.deepcopy(built).get_submodule("features") for _ in range(2))
    assert fuse_inverted_residuals(fused) == 1
    assert type(fused) is FusedSequential
    return plain, fused


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every call of the operator."""
    return count_calls(monkeypatch, residual_runs, "inverted_residuals")


def assert_same(fused: nn.Module, plain: nn.Module, x: Tensor, bound: float = 2e-5) -> None:
    got, expected = fused(x), plain(x)
    assert got.dtype == expected.dtype
    atol = bound * float(expected.detach().abs().max())
    torch.testing.assert_close(got, expected, rtol=bound, atol=atol)


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        ("mobilenet_v3_small", 1),
        ("mobilenet_v2", 1),
        ("efficientnet_b0", 1),
        ("mnasnet0_5", 0),  # blocks of a class that is not known
        ("resnet18", 0),
        ("timm/mobilenetv3_small_050", 1),
        ("timm/efficientnet_lite0", 1),
    ],
)
def test_networks(name: str, runs: int, calls: list[int]) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    plain = build(name)
    fused = copy.deepcopy(plain)
    assert fuse_inverted_residuals(fused) == runs
    for batch, size in ((1, 64), (3, 97)):
        assert_same(fused, plain, images(batch, 3, size, size))
    assert len(calls) == 2 * runs
    assert fused.state_dict().keys() == plain.state_dict().keys()


def test_tuned_networks_have_it(built: nn.Module, calls: list[int]) -> None:
    tuned = tune(built)
    assert_same(tuned.network, built, images(2, 3, 70, 70))
    assert len(calls) == 2  # its blocks and its classifier
    assert_same(tune(tuned).network, built, images(2, 3, 70, 70))
    assert len(calls) == 4


def test_a_network_whose_graph_is_fused_has_it(calls: list[int]) -> None:
    class Network(nn.Module):
        def __init__(self, features: nn.Module) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(inplace=True))
            self.features = features

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            out: Tensor = self.features(x)
            return out + x.mean()

    blocks = [*build("mobilenet_v3_small").get_submodule("features").children()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = Network(nn.Sequential(*blocks[1:4])).eval().requires_grad_(False)
        changed = Network(nn.Sequential(nn.SiLU(inplace=True), *blocks[1:4])).eval()
    for network in (plain, changed.requires_grad_(False)):
        tuned = tune(network)
        tuned(images(2, 3, 40, 40))  # what is around it may become a program, which takes a run
        calls.clear()
        assert_same(tuned, network, images(2, 3, 40, 40))
        assert len(calls) == 1
    assert tune(plain).network.features.inplace is False
    assert tune(changed).network.features.inplace is True


def test_a_sequence_with_other_modules_in_it(pair: Any, calls: list[int]) -> None:
    _, features = pair
    blocks = [*features.children()]
    inner = nn.Sequential(*blocks[3:6])
    pool = nn.MaxPool2d(3, padding=1)
    plain = nn.Sequential(nn.AvgPool2d(2), *blocks[:3], nn.GELU(), inner, pool, blocks[6])
    fused = copy.deepcopy(plain)
    assert fuse_inverted_residuals(fused) == 1
    assert_same(fused, plain, images(2, 3, 97, 60))
    assert len(calls) == 3


def test_parameters_that_change(pair: Any, calls: list[int]) -> None:
    plain, fused = pair
    x = images(2, 3, 40, 40)
    assert_same(fused, plain, x)
    state = {name: value * 1.1 for name, value in plain.state_dict().items()}
    for module in (plain, fused):
        module.load_state_dict(state)
    assert_same(fused, plain, x)
    for module in (plain, fused):
        conv = module.get_submodule("3.block.1.0")
        conv.weight = nn.Parameter(conv.weight * 2, requires_grad=False)
    assert_same(fused, plain, x)
    for module in (plain, fused):
        module[2] = nn.Identity()
        module[3] = nn.Conv2d(16, 24, 3, stride=2).requires_grad_(False)
    fused[3].load_state_dict(plain[3].state_dict())
    assert_same(fused, plain, x)
    assert len(calls) == 5  # two runs in the last
    assert_same(fused.double(), plain.double(), x.double())
    assert len(calls) == 5
    assert_same(fused.float(), plain.float(), x)
    assert len(calls) == 7


def test_modules_that_change_places(pair: Any, calls: list[int]) -> None:
    plain, fused = pair
    x = images(2, 3, 40, 40)
    assert_same(fused, plain, x)
    for module in (plain, fused):
        module[5], module[6] = module[6], module[5]  # both of 40 channels
    assert_same(fused, plain, x)
    assert len(calls) == 2


def test_parameters_changed_in_place(pair: Any, calls: list[int]) -> None:
    plain, fused = pair
    x = images(2, 3, 40, 40)
    for step in range(3):
        for module in (plain, fused):
            optimizer = torch.optim.SGD(module[step].parameters(), lr=0.1)
            for parameter in module[step].parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
        assert_same(fused, plain, x)
    assert len(calls) == 3
    for module in (plain, fused):
        module[4].double()  # each parameter stays the object that it is
    for module in (plain, fused):
        with pytest.raises(RuntimeError, match="type"):
            module(x)
    assert len(calls) == 3


def test_copies_and_files(pair: Any, calls: list[int]) -> None:
    plain, fused = pair
    x = images(1, 3, 40, 40)
    assert_same(fused, plain, x)
    for copied in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert "_known" not in copied.__dict__
        assert_same(copied, plain, x)
    assert len(calls) == 3
    assert type(fused[1:3]) is FusedSequential
    assert_same(fused[1:3], plain[1:3], images(1, 16, 9, 9))
    assert len(calls) == 4


def test_gradients_flow(pair: Any, calls: list[int]) -> None:
    plain, fused = pair
    x = images(1, 3, 40, 40).requires_grad_()
    got, expected = (torch.autograd.grad(m(x).square().sum(), x)[0] for m in (fused, plain))
    torch.testing.assert_close(got, expected)
    for module in (plain, fused):
        module[4].requires_grad_(True)
        module(x.detach()).sum().backward()
    gradients = [[p.grad for p in module[4].parameters()] for module in (fused, plain)]
    torch.testing.assert_close(*gradients)
    with forward_ad.dual_level():
        out = fused(forward_ad.make_dual(images(1, 3, 40, 40), torch.ones(1, 3, 40, 40)))
        assert forward_ad.unpack_dual(out).tangent is not None
    assert calls == []


@pytest.mark.parametrize("hooked", ["4", "4.block.0", "4.block.0.0"])
def test_hooks_are_called(pair: Any, calls: list[int], hooked: str) -> None:
    plain, fused = pair
    x = images(1, 3, 40, 40)
    seen: list[Any] = []
    handle = fused.get_submodule(hooked).register_forward_hook(
        lambda module, arguments, out: seen.append(out)
    )
    assert_same(fused, plain, x)
    assert (len(seen), len(calls)) == (1, 0)
    handle.remove()
    assert_same(fused, plain, x)
    assert (len(seen), len(calls)) == (1, 1)


def _under_autocast(fused: nn.Module, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        out: Tensor = fused(x)
    return out


def _mapped(fused: nn.Module, x: Tensor) -> Tensor:
    return torch.func.vmap(fused)(x[:, None])[:, 0]


@pytest.mark.parametrize("run", [_under_autocast, _mapped, counted, compiled, traced])
def test_where_it_is_the_sequence(
    pair: Any, calls: list[int], run: Callable[[nn.Module, Tensor], Tensor]
) -> None:
    plain, fused = pair
    x = images(2, 3, 40, 40)
    got, expected = run(fused, x), plain(x)
    bound = 1e-1 if got.dtype == torch.bfloat16 else 1e-5
    assert (got - expected).abs().max() <= bound * expected.abs().max()
    assert calls == []


def test_in_training_mode_it_is_the_sequence(calls: list[int]) -> None:
    network = build("mobilenet_v3_small")
    fuse_inverted_residuals(network)
    network.train()(images(1, 3, 40, 40))
    assert calls == []


def test_usual_errors_and_empty_batches(pair: Any) -> None:
    _, fused = pair
    assert fused(images(0, 3, 40, 40)).shape == (0, 576, 2, 2)
    with pytest.raises(RuntimeError, match=r"expected input.* to have 3 channels"):
        fused(images(1, 4, 40, 40))
    with pytest.raises(RuntimeError, match="type"):
        fused(images(1, 3, 40, 40).double())


def _changes() -> Iterator[tuple[str, Callable[[nn.Sequential], None]]]:
    """What makes a block one that there is no kernel for; "4" has an expansion, 5x5 and gates."""

    def dilate(block: nn.Sequential) -> None:
        block[1][0].dilation, block[1][0].padding = (2, 2), (4, 4)

    def pad(block: nn.Sequential) -> None:
        block[1][0].padding = (1, 3)

    def activate(block: nn.Sequential) -> None:
        block[0][2] = nn.GELU()

    def gate(block: nn.Sequential) -> None:
        block[2].scale_activation = nn.Tanh()

    def insert(block: nn.Sequential) -> None:
        block.insert(1, nn.AvgPool2d(3, 1, 1))

    def normalise(block: nn.Sequential) -> None:
        block[3].append(nn.BatchNorm2d(40).eval())

    def group(block: nn.Sequential) -> None:
        conv = nn.Conv2d(96, 96, 5, 1, 2, groups=48)
        block[1][0] = conv

    def subclass(block: nn.Sequential) -> None:
        class Own(nn.Conv2d):
            def forward(self, input: Tensor) -> Tensor:
                return super().forward(input) * 2

        block[0][0].__class__ = Own

    for change in (dilate, pad, activate, gate, insert, normalise, group, subclass):
        yield change.__name__, change


@pytest.mark.parametrize(("name", "change"), [*_changes()], ids=lambda value: str(value)[:9])
def test_blocks_that_are_something_else(
    pair: Any, calls: list[int], name: str, change: Callable[[nn.Sequential], None]
) -> None:
    plain, fused = pair
    with torch.random.fork_rng(devices=[]):
        for module in (plain, fused):
            torch.manual_seed(0)
            change(module[4].block)
            module.requires_grad_(False)
    assert_same(fused, plain, images(2, 3, 64, 64))
    assert len(calls) == 2  # what comes before it and what comes after

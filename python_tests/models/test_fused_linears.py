"""Fused linear layers are the layers, whatever their weights went through."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from operator_calls import count_calls
from torch import Tensor, nn

from anchornet_ext.models import build_backbone, residual_runs
from anchornet_ext.models.residual_runs import FusedLinears, fuse_linear_layers
from anchornet_ext.models.tuning import tune

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU, nn.Identity)


@pytest.fixture(autouse=True)
def on_avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the operator would be used, on any processor."""
    monkeypatch.setattr(residual_runs, "has_fast_kernels", lambda: True)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every call of the operator."""
    return count_calls(monkeypatch, residual_runs, "inverted_residuals")


def vectors(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def classifier(*parts: nn.Module) -> nn.Sequential:
    return nn.Sequential(*parts).eval().requires_grad_(False)


def head() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return classifier(
            nn.Linear(200, 260), nn.Hardswish(inplace=True), nn.Dropout(0.2), nn.Linear(260, 30)
        )


def pair() -> tuple[nn.Sequential, nn.Sequential]:
    plain = head()
    fused = copy.deepcopy(plain)
    assert fuse_linear_layers(fused) == 1
    assert type(fused) is FusedLinears
    return plain, fused


def assert_same(fused: nn.Module, plain: nn.Module, x: Tensor) -> None:
    torch.testing.assert_close(fused(x), plain(x.clone()), rtol=1e-4, atol=1e-4)


@given(
    st.lists(st.integers(1, 70), min_size=2, max_size=3),
    st.lists(st.sampled_from(ACTIVATIONS), min_size=3, max_size=3),
    st.integers(1, 20),
    st.booleans(),
)
def test_same_results(
    sizes: list[int], activations: list[type[nn.Module]], batch: int, bias: bool
) -> None:
    sizes = [sizes[0], 600, *sizes[1:]]  # enough weights for it to be worth while
    parts: list[nn.Module] = [nn.Dropout()]
    for inputs, outputs, activation in zip(sizes, sizes[1:], activations, strict=False):
        parts += [nn.Linear(inputs, outputs, bias=bias), activation()]
    plain = classifier(*parts, nn.Sequential(nn.Linear(sizes[-1], 60)), nn.Identity())
    fused = copy.deepcopy(plain)
    weights = sum(p.numel() for p in plain.parameters() if p.dim() == 2)
    fuse_linear_layers(fused)
    assert (type(fused) is FusedLinears) == (weights >= 1 << 15)
    assert_same(fused, plain, vectors(batch, sizes[0]))


def test_one_call_for_all_layers(calls: list[int]) -> None:
    plain, fused = pair()
    x = vectors(5, 200)
    before = x.clone()
    assert_same(fused, plain, x)
    assert torch.equal(x, before)
    assert len(calls) == 1
    assert fused.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize(
    "parts",
    [
        (nn.Linear(300, 300),),  # packed by itself
        (nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10)),
        (nn.ReLU(), nn.Linear(300, 300), nn.Linear(300, 9)),
        (nn.Linear(300, 300), nn.ReLU(), nn.ReLU6(), nn.Linear(300, 9)),
        (nn.Linear(300, 300), nn.Tanh(), nn.Linear(300, 9)),
        (nn.Linear(300, 300), nn.LayerNorm(300), nn.Linear(300, 9)),
    ],
)
def test_what_is_something_else_is_left(parts: tuple[nn.Module, ...]) -> None:
    network = classifier(*parts)
    assert fuse_linear_layers(network) == 0
    assert type(network) is nn.Sequential


def test_weights_that_change(calls: list[int]) -> None:
    plain, fused = pair()
    x = vectors(3, 200)
    assert_same(fused, plain, x)
    state = {name: vectors(*value.shape) for name, value in plain.state_dict().items()}
    for module in (plain, fused):
        module.load_state_dict(state)
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-4, atol=1e-2)
    for module in (plain, fused):
        module[3] = nn.Linear(260, 4).requires_grad_(False).eval()
        module[3].load_state_dict({"weight": vectors(4, 260) / 16, "bias": vectors(4)})
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-4, atol=1e-2)
    assert len(calls) == 3
    for module in (plain, fused):
        module[1] = nn.Tanh()
    torch.testing.assert_close(fused(x), plain(x), rtol=1e-4, atol=1e-2)
    assert len(calls) == 3


def test_dropout_that_drops(calls: list[int]) -> None:
    _, fused = pair()
    x = vectors(4, 200)
    fused(x)
    fused[2].train()
    with torch.random.fork_rng(devices=[]):
        assert not torch.equal(fused(x), fused(x))
    assert len(calls) == 1


def test_where_it_is_the_sequence(calls: list[int]) -> None:
    plain, fused = pair()
    assert_same(fused, plain, vectors(200))
    assert_same(fused, plain, vectors(2, 3, 200))
    assert fused(vectors(0, 200)).shape == (0, 30)
    assert_same(fused.double(), plain.double(), vectors(2, 200).double())
    fused.float()
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        fused(vectors(2, 199))
    assert torch.autograd.functional.jacobian(fused, vectors(1, 200)).abs().sum() > 0
    seen: list[Any] = []
    fused[0].register_forward_hook(lambda *arguments: seen.append(arguments))
    fused(vectors(2, 200))
    assert len(seen) == 1
    assert calls == []


def test_a_vector_that_is_no_number_stays_one() -> None:
    _, fused = pair()
    x = vectors(3, 200)
    x[1, 7] = float("nan")
    out = fused(x)
    assert out[1].isnan().all()
    assert out[[0, 2]].isfinite().all()


def test_copies_have_their_own(calls: list[int]) -> None:
    plain, fused = pair()
    x = vectors(2, 200)
    assert_same(fused, plain, x)
    for copied in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert_same(copied, plain, x)
    assert len(calls) == 3


def test_tuned_networks_have_it(calls: list[int]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = build_backbone("mobilenet_v3_small", 100).eval().requires_grad_(False)
    tuned = tune(plain)
    assert type(tuned.network.get_submodule("classifier")) is FusedLinears
    images = vectors(2, 3, 64, 64)
    torch.testing.assert_close(tuned.network(images), plain(images), rtol=1e-3, atol=1e-4)
    assert len(calls) == 2  # its blocks and its classifier

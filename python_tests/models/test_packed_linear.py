"""A packed linear layer is the layer, whatever its weight went through."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from operator_calls import count_calls
from torch import Tensor, nn
from torch.autograd import forward_ad

from anchornet_ext.models import packed_linear
from anchornet_ext.models.packed_linear import PackedLinear, pack_linears
from anchornet_ext.models.tuning import tune


@pytest.fixture(autouse=True)
def on_avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the operator would be used, on any processor."""
    monkeypatch.setattr(packed_linear, "has_fast_kernels", lambda: True)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every call of the operator."""
    return count_calls(monkeypatch, packed_linear, "inverted_residuals")


def vectors(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def pair(inputs: int = 300, outputs: int = 123, bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = nn.Linear(inputs, outputs, bias=bias).requires_grad_(False)
    packed = copy.deepcopy(plain)
    assert pack_linears(packed) == 1
    assert type(packed) is PackedLinear
    return plain, packed


def assert_same(packed: nn.Module, plain: nn.Module, x: Tensor, bound: float = 1e-5) -> None:
    torch.testing.assert_close(packed(x), plain(x), rtol=bound, atol=bound)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("batch", [1, 2, 9, 40])
def test_same_results(batch: int, bias: bool, calls: list[int]) -> None:
    plain, packed = pair(bias=bias)
    assert_same(packed, plain, vectors(batch, 300))
    assert_same(packed, plain, vectors(300, batch).t())
    assert len(calls) == 2


def test_weights_that_change(calls: list[int]) -> None:
    plain, packed = pair()
    x = vectors(3, 300)
    assert_same(packed, plain, x)
    for module in (plain, packed):
        module.load_state_dict({"weight": vectors(123, 300), "bias": vectors(123)})
    assert_same(packed, plain, x, bound=1e-4)
    for module in (plain, packed):
        module.bias = nn.Parameter(vectors(123) * 2, requires_grad=False)
    assert_same(packed, plain, x, bound=1e-4)
    assert len(calls) == 3
    assert_same(packed.double(), plain.double(), x.double())
    assert len(calls) == 3
    assert_same(packed.float(), plain.float(), x, bound=1e-4)
    for copied in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert "_known" not in copied.__dict__
        assert_same(copied, plain, x, bound=1e-4)
    assert len(calls) == 6


def test_where_it_is_the_layer(calls: list[int]) -> None:
    plain, packed = pair()
    x = vectors(2, 300)
    for other in (vectors(300), vectors(2, 3, 300), vectors(0, 300)):
        assert_same(packed, plain, other)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        packed(vectors(2, 299))
    with torch.autocast("cpu", torch.bfloat16):
        assert packed(x).dtype == torch.bfloat16
    with forward_ad.dual_level():
        out = packed(forward_ad.make_dual(x, torch.ones_like(x)))
        assert forward_ad.unpack_dual(out).tangent is not None
    assert_same(torch.func.vmap(packed), plain, x)
    assert_same(torch.compile(packed, fullgraph=True, backend="eager"), plain, x)
    assert packed.requires_grad_()(x).requires_grad
    assert calls == []


def test_tuned_networks_have_it(calls: list[int]) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(1024, 64), nn.ReLU(inplace=True), nn.Linear(64, 5),
    ).eval().requires_grad_(False)  # fmt: skip
    # Of more images than a program for small maps, which would have the layer in it, is made for.
    assert_same(tune(network), network, vectors(9, 3, 9, 9))
    assert len(calls) == 1  # the last is too small


def test_what_is_left_alone() -> None:
    class Own(nn.Linear):
        pass

    assert pack_linears(nn.Sequential(Own(300, 300), nn.Linear(100, 100))) == 0

"""A pool of means is the adaptive one, whatever it is given."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from operator_calls import count_calls
from torch import Tensor, nn
from torch.nn import functional

from anchornet_ext.models import mean_pooling
from anchornet_ext.models.mean_pooling import MeanPool2d, pack_pools


@pytest.fixture
def pool() -> MeanPool2d:
    made = nn.AdaptiveAvgPool2d((1, 1))
    assert pack_pools(made) == 1
    assert isinstance(made, MeanPool2d)
    return made


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every mean that is not the adaptive pool's."""
    return count_calls(monkeypatch, mean_pooling.functional, "avg_pool2d")


def maps(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 20, 3, 3), (5, 7, 6, 2), (2, 9, 1, 1)])
def test_same_means(
    pool: MeanPool2d, calls: list[int], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x = maps(*shape).to(dtype, memory_format=torch.channels_last)
    bound = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 1e-2}[dtype]
    expected = x.double().mean(dim=(2, 3), keepdim=True)
    got = pool(x)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected, rtol=bound, atol=bound)
    assert len(calls) == 1
    x[0, 1, 0, 0] = torch.nan
    assert pool(x).isnan().sum() == 1


def test_other_pools_stay_what_they_are() -> None:
    class Own(nn.AdaptiveAvgPool2d):
        pass

    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.AdaptiveAvgPool2d((1, None)), Own(1))
    assert pack_pools(network) == 0


def _with_gradient(pool: nn.Module) -> Tensor:
    x = maps(2, 3, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    pool(x).sum().backward()
    assert x.grad is not None
    return x.grad


def _autocast(pool: nn.Module) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        out: Tensor = pool(maps(2, 3, 4, 4))
    return out


@pytest.mark.parametrize(
    "run",
    [
        _with_gradient,
        _autocast,
        lambda pool: pool(maps(3, 4, 4)),
        lambda pool: pool(maps(2, 3, 4, 4)),  # not in channels_last
        lambda pool: pool(maps(0, 3, 4, 4)),
        lambda pool: torch.func.vmap(pool)(maps(2, 2, 3, 4, 4)),
        lambda pool: pool(maps(1, 3, 4, 4).to("meta")).shape.numel() * torch.ones(1),
        lambda pool: torch.export.export(pool, (maps(1, 3, 4, 4),)).module()(maps(1, 3, 4, 4)),
    ],
)
def test_where_it_is_the_adaptive_pool(
    pool: MeanPool2d, calls: list[int], run: Callable[[nn.Module], Tensor]
) -> None:
    assert torch.equal(run(pool), run(nn.AdaptiveAvgPool2d(1)))
    assert calls == []


def test_another_size_is_asked_for_later(pool: MeanPool2d, calls: list[int]) -> None:
    pool.output_size = (2, 2)
    x = maps(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    assert torch.equal(pool(x), functional.adaptive_avg_pool2d(x, 2))
    assert calls == []

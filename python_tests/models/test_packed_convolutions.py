"""A packed convolution is the convolution, whatever its weight went through."""

from __future__ import annotations

import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from anchornet_ext.models import build_backbone, packed_convolutions
from anchornet_ext.models.native_calls import has_fast_kernels
from anchornet_ext.models.packed_convolutions import (
    PackedConv2d,
    _has_kernels,
    pack_convolutions,
)
from anchornet_ext.ops._calls import MAP_DTYPES

pytestmark = pytest.mark.skipif(
    not _has_kernels(torch.float32), reason="this PyTorch was built without oneDNN"
)


def images(*shape: int, last: bool = True, dtype: torch.dtype = torch.float32) -> Tensor:
    drawn = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return drawn.contiguous(memory_format=torch.channels_last) if last else drawn


def pair(*arguments: int, **options: object) -> tuple[nn.Conv2d, PackedConv2d]:
    """A convolution and its packed copy."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = nn.Conv2d(*arguments, **options)  # type: ignore[arg-type]
    packed = copy.deepcopy(plain)
    assert pack_convolutions(packed) == 1
    assert isinstance(packed, PackedConv2d)
    return plain, packed


def ran_packed(module: PackedConv2d) -> bool:
    known = module.__dict__.get("_known")
    return known is not None and bool(known.packed or known.of_maps)


def assert_same(packed: nn.Module, plain: nn.Module, x: Tensor, bound: float = 1e-5) -> None:
    with torch.no_grad():
        got, expected = packed(x), plain(x)
    assert got.shape == expected.shape
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=bound, atol=bound * float(expected.abs().max()))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_same_results(data: st.DataObject) -> None:
    groups = data.draw(st.sampled_from([1, 1, 2, 8]))
    kernel = data.draw(st.sampled_from([1, 3, 5, (1, 3)]))
    plain, packed = pair(
        groups * data.draw(st.integers(1, 9)),
        groups * data.draw(st.integers(1, 9)),
        kernel,
        stride=data.draw(st.integers(1, 3)),
        padding=data.draw(st.sampled_from([0, 2, (1, 0)])),
        dilation=data.draw(st.integers(1, 2)),
        groups=groups,
        bias=data.draw(st.booleans()),
    )
    for _ in range(data.draw(st.integers(1, 3))):  # weights packed for one shape meet another
        batch, height, width = (data.draw(st.integers(1, n)) for n in (9, 20, 20))
        x = images(batch, plain.in_channels, height + 8, width + 8, last=data.draw(st.booleans()))
        assert_same(packed, plain, x)
    assert ran_packed(packed)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    plain, packed = pair(16, 8, 3, dtype=dtype)
    assert_same(packed, plain, images(2, 16, 9, 9, dtype=dtype), bound=1e-2)
    assert ran_packed(packed) == _has_kernels(dtype)


def test_weights_that_change() -> None:
    plain, packed = pair(8, 8, 3, bias=False)
    x = images(2, 8, 12, 12)
    assert_same(packed, plain, x)
    for module in (plain, packed):
        module.load_state_dict({"weight": torch.full_like(module.weight, 0.25)})
    assert_same(packed, plain, x)
    for module in (plain, packed):
        module.weight = nn.Parameter(torch.linspace(-1, 1, 576).reshape(8, 8, 3, 3))
    assert_same(packed, plain, x)
    assert_same(packed.double(), plain.double(), x.double())
    assert_same(packed.float(), plain.float(), x)
    with torch.inference_mode():
        for module in (plain, packed):
            module.weight = nn.Parameter(torch.ones(8, 8, 3, 3), requires_grad=False)
        assert_same(packed, plain, x)


def test_gradients_flow() -> None:
    plain, packed = pair(4, 4, 3)
    x = images(1, 4, 8, 8).requires_grad_()
    (expected,) = torch.autograd.grad(plain(x).square().sum(), x)
    (got,) = torch.autograd.grad(packed(x).square().sum(), x)
    torch.testing.assert_close(got, expected)


def test_forward_mode_gradients_flow() -> None:
    plain, packed = pair(3, 8, 3)
    plain.requires_grad_(False)
    packed.requires_grad_(False)
    x = images(2, 3, 9, 9)
    tangents = []
    for module in (plain, packed):
        with forward_ad.dual_level():
            out = module(forward_ad.make_dual(x, torch.ones_like(x)))
            tangents.append(forward_ad.unpack_dual(out).tangent)
    assert tangents[0] is not None
    torch.testing.assert_close(tangents[1], tangents[0])
    assert not ran_packed(packed)
    packed(x)
    assert ran_packed(packed)


def test_copies_and_files() -> None:
    plain, packed = pair(4, 4, 3)
    x = images(1, 4, 8, 8)
    assert_same(packed, plain, x)
    assert ran_packed(packed)
    for copied in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert not ran_packed(copied)  # oneDNN's own tensors can be neither copied nor stored
        assert_same(copied, plain, x)
    assert packed.state_dict().keys() == plain.state_dict().keys()


def test_usual_errors_and_empty_batches() -> None:
    _, packed = pair(4, 6, 3)
    with torch.no_grad():
        assert packed(images(0, 4, 8, 8)).shape == (0, 6, 6, 6)
        with pytest.raises(RuntimeError, match=r"expected input.* to have 4 channels"):
            packed(images(1, 5, 8, 8))
        with pytest.raises(RuntimeError, match=r"[Kk]ernel size can't be greater"):
            packed(images(1, 4, 2, 2))
        with pytest.raises(RuntimeError, match="type"):
            packed(images(1, 4, 8, 8).double())


def test_counted_and_mapped_as_a_convolution() -> None:
    plain, packed = pair(4, 6, 3)
    x = images(2, 4, 8, 8)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        packed(x)
    assert counter.get_total_flops() == 2 * 2 * 6 * 4 * 9 * 36
    with torch.no_grad():
        got = torch.func.vmap(packed)(x[:, None])
        torch.testing.assert_close(got[:, 0], plain(x))
        traced = torch.jit.trace(packed, x)
        assert "mkldnn::_convolution_pointwise" not in str(traced.graph)


def test_what_is_left_alone() -> None:
    class Own(nn.Conv2d):
        pass

    network = nn.Sequential(
        nn.Conv2d(3, 3, 3, padding_mode="reflect", padding=1),
        nn.Conv2d(3, 3, 3, padding="same"),
        Own(3, 3, 3),
        nn.Conv1d(3, 3, 3),
    )
    assert pack_convolutions(network) == 0


@pytest.fixture
def on_avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's own convolutions wherever they would be there, and nowhere else."""
    monkeypatch.setattr(packed_convolutions, "has_fast_kernels", MAP_DTYPES.__contains__)


def of_maps(module: PackedConv2d) -> bool:
    return module._known.of_maps is not None


@pytest.mark.usefixtures("on_avx512")
@settings(max_examples=15, deadline=None)
@given(st.data())
def test_small_maps_give_the_same_results(data: st.DataObject) -> None:
    kernel = data.draw(st.sampled_from([1, 3, (1, 3), 4]))
    dtype = data.draw(st.sampled_from(MAP_DTYPES))
    plain, packed = pair(
        data.draw(st.sampled_from([256, 300])),
        data.draw(st.integers(1, 80)),
        kernel,
        stride=data.draw(st.integers(1, 3)),
        padding=data.draw(st.sampled_from([0, 2, (1, 0)])),
        dilation=data.draw(st.integers(1, 2)),
        bias=data.draw(st.booleans()),
        dtype=dtype,
    )
    batch, height, width = (data.draw(st.integers(1, n)) for n in (9, 3, 3))
    last = data.draw(st.booleans())
    x = images(batch, plain.in_channels, height + 6, width + 6, last=last, dtype=dtype)
    assert_same(packed, plain, x, bound=1e-5 if dtype == torch.float32 else 1e-2)
    pixels = plain(x).shape[2:].numel()
    if pixels <= 36 or (pixels <= 144 and batch * pixels <= 800):  # larger ones need not be
        assert of_maps(packed)


@pytest.mark.usefixtures("on_avx512")
@pytest.mark.parametrize(
    ("channels", "size", "batch", "own"),
    [(256, 6, 32, True), (256, 24, 1, False), (8, 6, 32, False), (256, 12, 5, True),
     (256, 12, 6, False)],
)  # fmt: skip
def test_maps_are_small_or_not(channels: int, size: int, batch: int, own: bool) -> None:
    plain, packed = pair(channels, 24, 3, padding=1)
    assert_same(packed, plain, images(batch, channels, size, size))
    assert of_maps(packed) == own
    assert bool(packed._known.packed) != own


@pytest.mark.usefixtures("on_avx512")
def test_what_small_maps_leave_to_others() -> None:
    for options in ({"groups": 2}, {"dtype": torch.float16}):
        plain, packed = pair(256, 24, 3, padding=1, **options)
        x = images(2, 256, 6, 6, dtype=plain.weight.dtype)
        assert_same(packed, plain, x, bound=2e-2)
        assert "_known" not in packed.__dict__ or not of_maps(packed)
    _, packed = pair(256, 24, 3)
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"[Kk]ernel size can't be greater"):
        packed(images(1, 256, 2, 2))


def test_maps_without_pixels_give_the_usual_error() -> None:
    plain, packed = pair(256, 24, 3, padding=2)
    for module in (plain, packed):
        with torch.no_grad(), pytest.raises(RuntimeError):
            module(images(1, 256, 0, 5))


@pytest.mark.usefixtures("on_avx512")
def test_weights_of_small_maps_that_change() -> None:
    plain, packed = pair(256, 24, 3, padding=1)
    x = images(2, 256, 6, 6)
    assert_same(packed, plain, x)
    for module in (plain, packed):
        module.load_state_dict({"weight": torch.full_like(module.weight, 0.25)}, strict=False)
    assert_same(packed, plain, x)
    for module in (plain, packed):
        module.weight = nn.Parameter(module.weight.detach() * 2)
    assert_same(packed, plain, x)
    assert of_maps(packed)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(packed)))
    assert "_known" not in copied.__dict__
    assert_same(copied, plain, x)


def test_each_order_is_kept_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_convolutions, "has_fast_kernels", lambda dtype: False)
    network = build_backbone("resnet18", 10).eval()
    count = pack_convolutions(network)
    assert count == 20
    with torch.no_grad():
        for batch in (1, 2, 4):
            network(images(batch, 3, 64, 64))
    for module in network.modules():
        if isinstance(module, PackedConv2d):
            packed = module._known.packed
            assert len(packed) == 3
            if torch.get_num_threads() == 1:  # with more, the order may depend on the batch
                assert len({id(tensor) for tensor in packed.values()}) == 1


@pytest.mark.parametrize(("own", "size"), [(True, 3), (False, 24)], ids=["convolve_maps", "oneDNN"])
def test_two_threads_give_what_one_gives(own: bool, size: int) -> None:
    """Both begin with a module whose weights nobody has packed, on batches of many sizes."""
    if own and not has_fast_kernels():
        pytest.skip("this processor has no fast small maps")
    plain, alone = pair(64, 48, 3, padding=1)
    # The threads take the sizes in opposite orders, so that each packs what the other needs next.
    batches = [images(n, 64, size, size) for n in (1, 2, 3, 5, 9, 17)]
    with torch.no_grad():
        expected = [alone(x) for x in batches]
    for x in batches:
        assert_same(alone, plain, x)
    for _ in range(5):
        shared = copy.deepcopy(alone)  # which packs its own
        assert not ran_packed(shared)
        start = threading.Barrier(2)

        def run(turn: int, shared: PackedConv2d = shared, start: Any = start) -> list[Tensor]:
            start.wait(timeout=60)
            with torch.no_grad():
                return [shared(x) for x in batches[::turn]][::turn]

        with ThreadPoolExecutor(2) as pool:
            for results in pool.map(run, (1, -1)):
                for got, wanted in zip(results, expected, strict=True):
                    assert torch.equal(got, wanted)


@pytest.mark.parametrize("size", [6, 40])  # by this package's own kernel, where it is used, and not
@pytest.mark.parametrize("with_add", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_activation_hides_nan(size: int, with_add: bool, dtype: torch.dtype) -> None:
    _, conv = pair(32, 32, 3, padding=1)
    conv.to(dtype)
    x = images(2, 32, size, size, dtype=dtype)
    add = torch.zeros_like(x) if with_add else None
    x[0, 3, 2, 2] = torch.nan
    with torch.no_grad():
        out = conv.run_fused(x, add, "relu")
    assert out[0, :, 1:4, 1:4].isnan().all()
    assert out.isnan().sum() == 9 * 32
    assert (out[1] >= 0).all()

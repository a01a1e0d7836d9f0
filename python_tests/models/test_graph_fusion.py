"""A network with its operations fused is the network, whatever its graph."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_hook

from anchornet_ext.models import (
    build_backbone,
    fused_network,
    native_calls,
    packed_convolutions,
    residual_runs,
)
from anchornet_ext.models.fused_network import FusedNetwork
from anchornet_ext.models.graph_fusion import FusedConvolution, fuse
from anchornet_ext.models.map_lowering import LoweredMaps
from anchornet_ext.models.packed_convolutions import _has_kernels
from anchornet_ext.models.tuning import TunedNetwork, tune

pytestmark = pytest.mark.skipif(
    not _has_kernels(torch.float32), reason="this PyTorch was built without oneDNN"
)

CHANNELS = 16  # the fewest that go into programs for small maps
OPERATIONS = (
    "conv", "conv", "shared", "strided", "norm", "relu", "relu_", "functional", "functional_",
    "method_", "add", "add_", "scaled", "identity", "dropout", "flat", "add_number",
    "cat", "dense", "max_pool", "gate",
)  # fmt: skip


class Drawn(nn.Module):
    """Operations on the results of earlier ones, in the order in which they were drawn."""

    def __init__(self, steps: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.steps = steps
        self.shared = nn.Conv2d(CHANNELS, CHANNELS, 1)
        self.convs = nn.ModuleList(
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=i % 2 == 0) for i in range(len(steps))
        )
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.wide_norm, self.merge = (
            nn.BatchNorm2d(2 * CHANNELS),
            nn.Conv2d(2 * CHANNELS, CHANNELS, 1),
        )
        self.max_pool, self.mean = nn.MaxPool2d(3, 1, 1), nn.AdaptiveAvgPool2d(1)
        with torch.no_grad():
            for norm in (self.norm, self.wide_norm):
                for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                    tensor.uniform_(0.5, 1.5)
        self.pool = nn.AvgPool2d(3, 1, 1)
        self.relu, self.relu_ = nn.ReLU(), nn.ReLU(inplace=True)
        self.identity, self.dropout = nn.Identity(), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for index, (name, first, second) in enumerate(self.steps):
            values.append(self.run(name, index, values[first], values[second]))
        # Everything counts, also what was changed after it was read.
        return torch.stack([value.reshape(len(x), -1) for value in values])

    def run(self, name: str, index: int, a: Tensor, b: Tensor) -> Tensor:
        if name == "conv":
            return self.convs[index](a)
        if name == "strided":
            return self.pool(self.convs[index](a))
        if name == "functional":
            return functional.relu(a)
        if name == "functional_":
            return functional.relu(a, True)
        if name == "method_":
            return a.relu_()
        if name == "add":
            return a + b
        if name == "add_":
            a += b
            return a
        if name == "scaled":
            return torch.add(a, b, alpha=0.5)
        if name == "add_number":
            return a + 0.25
        if name == "cat":
            return self.merge(torch.cat([a, b], 1))
        if name == "dense":
            return self.merge(self.relu_(self.wide_norm(torch.cat([a, b], dim=1))))
        if name == "gate":
            return a + self.shared(self.mean(b))
        if name == "flat":
            return a.view(a.shape)
        module: nn.Module = getattr(self, name)
        return module(a)


@st.composite
def networks(draw: st.DrawFn) -> Drawn:
    count = draw(st.integers(1, 9))
    # Most often of the last results, as networks are.
    steps = [
        (
            draw(st.sampled_from(OPERATIONS)),
            max(0, index - draw(st.sampled_from([0, 0, 0, 0, 1, 2, 3]))),
            max(0, index - draw(st.integers(0, 3))),
        )
        for index in range(count)
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(draw(st.integers(0, 99)))
        return Drawn(steps).eval()


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def on_avx512(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs for small maps wherever they would be there."""
    monkeypatch.setattr(fused_network, "has_fast_kernels", lambda dtype: True)


@pytest.mark.usefixtures("on_avx512")
@settings(max_examples=100, deadline=None)
@given(network=networks(), batch=st.integers(1, 3))
def test_any_graph(network: Drawn, batch: int) -> None:
    x = images(batch, CHANNELS, 5, 6)
    tuned = tune(network, image_size=(5, 6))
    untouched = x.clone()
    with torch.no_grad():
        expected = network(untouched)
        for _ in range(2):  # the first run is recorded before
            own = x.clone(memory_format=torch.channels_last)
            got = tuned(own)
            torch.testing.assert_close(got, expected, rtol=2e-4, atol=2e-4)
            torch.testing.assert_close(own, untouched)  # changed in the same way, if at all


def graph_of(tuned: TunedNetwork) -> fx.GraphModule | None:
    assert tuned._fused is not None
    return tuned._fused._graph


def fused_in(network: nn.Module) -> list[FusedConvolution]:
    graph = fuse(tune(network, image_size=(9, 9)).network)
    return [] if graph is None else [m for m in graph.modules() if isinstance(m, FusedConvolution)]


class Block(nn.Module):
    """A residual block, its sum made in place or not."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(2))
        self.relu = nn.ReLU(in_place)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        out = self.second(self.relu(self.first(x)))
        if self.in_place:
            out += x
        else:
            out = out + x
        return self.relu(out)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_residual_block_is_two_operations(in_place: bool) -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), Block(in_place))
    assert [module.activation for module in fused_in(network)] == ["relu", "relu"]
    graph = fuse(tune(network, image_size=(9, 9)).network)
    assert graph is not None
    assert sum(node.op == "call_module" for node in graph.graph.nodes) == 3


@pytest.mark.parametrize("last", [nn.ReLU, nn.Identity])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sums_that_broadcast(last: type[nn.Module], dtype: torch.dtype) -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 3, 1), last()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.conv(x) + x.mean((2, 3), keepdim=True))

    network, x = Gate().to(dtype), images(2, 3, 4, 5).to(dtype)
    tuned = tune(network)
    with torch.no_grad():
        torch.testing.assert_close(tuned(x), network(x), rtol=2e-2, atol=2e-2)
    assert graph_of(tuned) is not None


@pytest.mark.usefixtures("on_avx512")
@pytest.mark.parametrize("name", ["resnet18", "densenet121", "googlenet", "mobilenet_v3_small"])
def test_networks_of_others(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Else there is nothing left of MobileNet's graph on a processor with AVX-512.
    monkeypatch.setattr(residual_runs, "has_fast_kernels", lambda: False)
    network = build_backbone(name, 7).eval()
    tuned = tune(network)
    x = images(2, 3, 64, 64)
    with torch.no_grad():
        expected = network(x)
        for _ in range(3):
            assert (tuned(x) - expected).abs().max() <= 1e-4 * expected.abs().max() + 1e-6
    assert graph_of(tuned) is not None
    assert programs_of(tuned)


def programs_of(tuned: TunedNetwork) -> list[LoweredMaps]:
    assert tuned._fused is not None
    return list(tuned._fused._programs.values())


@pytest.mark.usefixtures("on_avx512")
def test_a_network_is_one_program_for_images_of_any_size() -> None:
    network = build_backbone("resnet18", 7).eval()
    tuned = tune(network)
    with torch.no_grad():
        for batch, size in ((1, 64), (2, 96), (1, 64), (9, 32)):
            x = images(batch, 3, size, size)
            first = tuned(x)
            for _ in range(2):
                assert torch.equal(tuned(x), first)
                torch.testing.assert_close(tuned(x), network(x), rtol=1e-3, atol=1e-3)
    # All but the first convolution, its pooling included; nine images are too many.
    (program,) = programs_of(tuned)
    assert program._packed is not None


@pytest.mark.usefixtures("on_avx512")
@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_programs_in_bfloat16(name: str) -> None:
    network = build_backbone(name, 7).eval()
    tuned, x = tune(network, dtype=torch.bfloat16), images(2, 3, 64, 64)
    with torch.no_grad():
        expected, plain = network(x), network.bfloat16()(x.bfloat16()).float()
        got = tuned(x)
    assert got.dtype == torch.bfloat16
    # Rounded at fewer places than PyTorch rounds, so not farther from float32 but by chance.
    error = (got.float() - expected).abs().mean()
    assert error <= 1.5 * (plain - expected).abs().mean()
    (*_, program) = programs_of(tuned)
    assert program._packed is not None
    assert program._packed.program.weights.dtype == torch.bfloat16
    assert program._packed.program.parameters.dtype == torch.float32


def test_a_processor_that_multiplies_matrices_is_left_to_onednn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In bfloat16, but for few images of a network of batch norms."""
    monkeypatch.setattr(fused_network, "has_fast_kernels", lambda dtype: dtype == torch.float32)
    monkeypatch.setattr(fused_network, "has_map_kernels", lambda dtype: True)
    for name, dtype, best, taken in (
        ("resnet18", torch.float32, None, [1, 2, 8]),
        ("resnet18", torch.bfloat16, None, []),
        ("densenet121", torch.float32, 8, [1, 2, 8]),
        ("densenet121", torch.bfloat16, None, [1, 2]),
    ):
        graph = FusedNetwork(tune(build_backbone(name, 7).eval(), dtype=dtype).network, dtype)
        assert graph.best_batch == best
        with torch.no_grad():
            found = [n for n in (1, 2, 8) if graph.takes(images(n, 3, 96, 96).to(dtype))]
        assert found == taken


@pytest.mark.parametrize(("has_unit", "fast"), [(False, True), (True, False)])
def test_whose_kernels_are_faster_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch, has_unit: bool, fast: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: has_unit, raising=False)
    monkeypatch.setattr(native_calls, "has_map_kernels", lambda dtype: True)
    asked = native_calls.has_fast_kernels.__wrapped__
    assert asked(torch.bfloat16) == fast
    assert asked(torch.float32)


@pytest.mark.parametrize(("dtype", "fused"), [(torch.float32, True), (torch.bfloat16, False)])
def test_depthwise_networks_keep_their_modules_in_bfloat16(dtype: torch.dtype, fused: bool) -> None:
    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16))
    tuned, x = tune(network, dtype=dtype), images(1, 3, 9, 9).to(dtype)
    with torch.no_grad():
        torch.testing.assert_close(tuned(x), network.to(dtype)(x), rtol=2e-2, atol=2e-2)
    assert (graph_of(tuned) is not None) == fused


@pytest.mark.usefixtures("on_avx512")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_that_change_in_a_program(dtype: torch.dtype) -> None:
    network = nn.Sequential(
        nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 1), nn.ReLU(), nn.BatchNorm2d(16)
    ).eval().to(dtype)  # fmt: skip
    tuned, x = tune(network, image_size=(9, 9)), images(2, 16, 9, 9).to(dtype)

    def assert_same() -> None:
        near = {} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
        with torch.no_grad():
            for _ in range(2):
                torch.testing.assert_close(tuned(x), network(x), **near)

    assert_same()
    assert len(programs_of(tuned)) == 1
    for part in (network, tuned.network):
        part.load_state_dict({key: value / 2 for key, value in part.state_dict().items()})
    assert_same()
    for part in (network, tuned.network):
        part[2].weight = nn.Parameter(torch.ones_like(part[2].weight), requires_grad=False)
        part[2].bias = None
    assert_same()


def test_weights_that_change_and_hooks_that_come() -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(inplace=True), nn.Flatten())
    tuned, x = tune(network), images(2, 3, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(tuned(x), network(x))
        for part in (network, tuned.network):
            part.load_state_dict({key: value / 2 for key, value in part.state_dict().items()})
        torch.testing.assert_close(tuned(x), network(x))
        handle = tuned.network[0].register_forward_hook(lambda module, args, out: out * 0 - 1)
        assert (tuned(x) == 0).all()
        handle.remove()
        torch.testing.assert_close(tuned(x), network(x))
        torch.testing.assert_close(tuned.double()(x.double()), network.double()(x.double()))


@pytest.mark.parametrize("watched_from_the_start", [False, True])
def test_hooks_of_all_modules_see_every_module(watched_from_the_start: bool) -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()).eval().requires_grad_(False)
    tuned, x = tune(network), images(2, 3, 6, 6)
    if not watched_from_the_start:
        tuned(x)
    seen: list[nn.Module] = []
    handle = register_module_forward_hook(lambda module, args, out: seen.append(module))
    try:
        found = tuned(x)
    finally:
        handle.remove()
    torch.testing.assert_close(found, network(x))
    assert seen == [*tuned.network, tuned.network, tuned]


def test_copies_and_files() -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU()).eval()
    tuned, x = tune(network), images(2, 3, 6, 6)
    keys = tuned.state_dict().keys()
    expected = tuned(x)
    assert tuned.state_dict().keys() == keys
    for copied in (copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned)), tune(tuned)):
        torch.testing.assert_close(copied(x), expected)
        assert graph_of(copied) is not None


class ByValue(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu() if x.sum() > 0 else x


class Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand(1)


@pytest.mark.parametrize("part", [ByValue(), Noise()])
def test_what_has_no_graph_runs_as_it_is(part: nn.Module) -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), part)
    tuned = tune(network)
    for x in (images(1, 3, 4, 4), -images(1, 3, 4, 4)):
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            expected = network(x)
            torch.manual_seed(0)
            torch.testing.assert_close(tuned(x), expected)
    assert graph_of(tuned) is None


def test_a_network_in_training_is_left_alone() -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())
    packed_convolutions.pack_convolutions(network)
    assert fuse(network.train()) is None
    assert fuse(network.eval()) is not None

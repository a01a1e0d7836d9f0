"""A tuned network says the same as the network, and leaves it alone."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_networks import TinyNetwork, noise, tiny_classifier
from torch import Tensor, nn

from anchornet_ext.models import build_backbone
from anchornet_ext.models.tuning import TunedNetwork, tune


def with_statistics(network: nn.Module, seed: int = 0) -> nn.Module:
    """As a trained network has them: a fresh one's batch norms do next to nothing."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            if module.affine:
                module.weight.data.uniform_(0.5, 1.5, generator=generator)
                module.bias.data.normal_(generator=generator)
    return network.eval()


def backbone(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return with_statistics(build_backbone(name, 10))


def outputs(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        out: Tensor = network(images)
    return out


def assert_close(got: Tensor, expected: Tensor, bound: float = 1e-4) -> None:
    """Relative to the largest logit: single ones may be close to zero by chance."""
    assert got.shape == expected.shape
    error = (got.double() - expected.double()).abs().max() / expected.double().abs().max()
    assert error <= bound


@pytest.mark.parametrize(
    ("name", "folded", "kept"),
    [
        ("resnet18", 20, 0),
        ("resnet50", 53, 0),
        ("densenet121", 59, 62),  # those before a layer read a concatenation
        ("mobilenet_v3_small", 34, 0),
        ("regnet_y_400mf", 53, 0),
        ("efficientnet_b0", 49, 0),
        ("timm/mobilenetv3_small_100", 34, 0),  # norm and activation in one module
        ("timm/tf_efficientnet_b0", 49, 0),  # a convolution with its own padding
        ("timm/resnetv2_50", 32, 17),  # its weights are standardised only in another variant
    ],
)
def test_same_logits(name: str, folded: int, kept: int) -> None:
    network = backbone(name)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    tuned = tune(network)
    assert (tuned.norms.folded, len(tuned.norms.kept)) == (folded, kept)
    assert tuned.norms.obstacle is None
    left = [m for m in tuned.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(left) == kept
    images = noise(2, (95, 95), seed=1)
    expected = outputs(network, images)
    assert_close(outputs(tuned, images), expected)
    assert_close(outputs(tune(network, dtype=torch.float64), images), expected)

    # The network is as it was, and shares nothing with the copy.
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    theirs = {p.data_ptr() for p in network.parameters()}
    assert not theirs & {p.data_ptr() for p in tuned.parameters()}
    assert all(p.requires_grad for p in network.parameters())


class Branches(nn.Module):
    """Batch norms of which some must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 4, 3, bias=False)
        self.plain_norm = nn.BatchNorm2d(4)
        self.biased = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", groups=2)
        self.biased_norm = nn.BatchNorm2d(4, affine=False)
        self.also_read = nn.Conv2d(4, 4, 1)
        self.also_read_norm = nn.BatchNorm2d(4)
        self.twice = nn.Conv2d(4, 4, 1)
        self.twice_norms = nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])
        self.conv_of_shared = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)])
        self.shared_norm = nn.BatchNorm2d(4)
        self.of_batch = nn.Conv2d(4, 4, 1)
        self.of_batch_norm = nn.BatchNorm2d(4, track_running_stats=False)
        self.tied = nn.Conv2d(4, 4, 1, bias=False)
        self.tied_norm = nn.BatchNorm2d(4)
        self.tied_to = nn.Conv2d(4, 4, 1, bias=False)
        self.tied_to.weight = self.tied.weight
        self.up = nn.ConvTranspose2d(4, 4, 2)
        self.up_norm = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 4, 1)
        self.last_norm = nn.BatchNorm2d(4)
        self.first_norm = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.plain_norm(self.plain(self.first_norm(images))).relu_()
        x = self.biased_norm(self.biased(x))
        y = self.also_read(x)
        x = self.also_read_norm(y) * y.sigmoid()
        x = self.twice_norms[1](self.twice(self.twice_norms[0](self.twice(x))))
        x = self.shared_norm(self.conv_of_shared[0](x)) + self.shared_norm(
            self.conv_of_shared[1](x)
        )
        x = self.of_batch_norm(self.of_batch(x))
        x = self.tied_to(self.tied_norm(self.tied(x)))
        x = self.up_norm(self.up(x))
        last = self.last(x)
        return self.last_norm(last), last  # the caller reads it, too


def branches() -> Branches:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Branches()
    for norm in (network.of_batch_norm,):
        norm.running_mean = norm.running_var = None
    tracked = [m for m in network.modules() if getattr(m, "running_mean", None) is not None]
    for norm in tracked:
        norm.running_mean.normal_(generator=torch.Generator().manual_seed(1))
        norm.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(2))
    return network.eval()


def test_a_norm_that_cannot_go_stays() -> None:
    network = branches()
    tuned = tune(network)
    images = noise(2, (20, 24), seed=0)
    for got, expected in zip(outputs(tuned, images), outputs(network, images), strict=True):
        assert_close(got, expected)
    assert tuned.norms.folded == 2  # plain and biased
    assert set(tuned.norms.kept) == {
        *("first_norm", "also_read_norm", "twice_norms.0", "twice_norms.1", "shared_norm"),
        *("of_batch_norm", "tied_norm", "up_norm", "last_norm"),
    }


def test_weights_that_are_computed_stay() -> None:
    network = nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)
    )
    with_statistics(network)
    tuned = tune(network)
    assert tuned.norms.kept == ("1",)
    images = noise(2, (20, 24), seed=0)
    assert_close(outputs(tuned, images), outputs(network, images))


class Halved(nn.Conv2d):
    """Makes something else of its weight, and has no place for a bias."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight)


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


@pytest.mark.parametrize(
    ("conv", "norm"),
    [
        (Halved(3, 4, 3, bias=False), nn.BatchNorm2d(4)),
        (nn.Conv2d(3, 4, 3), OwnNorm(4)),
    ],
)
def test_modules_of_other_classes_stay(conv: nn.Module, norm: nn.Module) -> None:
    network = with_statistics(nn.Sequential(conv, norm))
    tuned = tune(network)
    assert tuned.norms.kept == ("1",)
    images = noise(2, (20, 24), seed=0)
    assert_close(outputs(tuned, images), outputs(network, images))


@pytest.mark.parametrize("watched", ["conv", "norm"])
def test_what_a_hook_watches_is_not_folded(watched: str) -> None:
    network = with_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    seen: list[Tensor] = []
    if watched == "conv":
        network[0].register_forward_hook(lambda module, inputs, out: seen.append(out))
    else:
        network[1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    network[2].register_forward_hook(lambda module, inputs, out: seen.append(out))
    images = noise(2, (20, 24), seed=0)
    outputs(network, images)
    expected, seen[:] = list(seen), []
    tuned = tune(network)
    assert tuned.norms.kept == ("1",)
    assert not seen  # nobody notices the look at the shapes
    outputs(tuned, images)
    for got, one in zip(seen, expected, strict=True):
        assert_close(got, one)


class FixedSize(TinyNetwork):
    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2:] != (96, 104):
            raise ValueError(f"images must be 96x104, got {tuple(images.shape[2:])}")
        return super().forward(images)


def test_a_network_that_cannot_be_watched_says_so() -> None:
    network = FixedSize()
    norms = tune(network).norms
    assert norms.folded == 0
    assert norms.kept == ("convolutions.1",)
    assert norms.obstacle is not None
    assert "must be 96x104, got (32, 32)" in norms.obstacle
    assert tune(network, image_size=(96, 104)).norms.folded == 1


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    channels=st.integers(1, 6),
    groups=st.sampled_from([1, 2]),
    bias=st.booleans(),
    affine=st.booleans(),
    stride=st.integers(1, 2),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_folding_any_convolution(
    seed: int,
    channels: int,
    groups: int,
    bias: bool,
    affine: bool,
    stride: int,
    dtype: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    conv = nn.Conv2d(3 * groups, channels * groups, 3, stride, groups=groups, bias=bias)
    for parameter in conv.parameters():
        parameter.data.normal_(generator=generator)
    norm = nn.BatchNorm2d(channels * groups, affine=affine, eps=1e-3)
    network = with_statistics(nn.Sequential(conv, norm), seed).to(dtype)
    tuned = tune(network)
    assert tuned.norms.folded == 1
    images = torch.randn(3, 3 * groups, 9, 8, generator=generator, dtype=dtype)
    assert outputs(tuned, images).dtype == dtype
    assert_close(
        outputs(tuned, images), outputs(network, images), 1e-12 if dtype == torch.float64 else 1e-5
    )


def test_a_tuned_network_stays_what_it_is() -> None:
    network = with_statistics(TinyNetwork())
    images = noise(3, (96, 96), seed=0)
    tuned = tune(network)
    expected = outputs(tuned, images)
    assert not any(m.training for m in tuned.train().modules())
    assert not any(p.requires_grad for p in tuned.parameters())
    assert not tuned(images.requires_grad_()).requires_grad  # also where gradients are enabled
    images = images.detach()
    for again in (copy.deepcopy(tuned), pickle.loads(pickle.dumps(tuned)), tune(tuned)):
        assert isinstance(again, TunedNetwork)
        assert again.norms == tuned.norms
        assert torch.equal(outputs(again, images), expected)
        assert again.network is not tuned.network
    with torch.no_grad():
        network.classifier.weight.zero_()
    assert torch.equal(outputs(tuned, images), expected)
    halved = tune(network, dtype=torch.bfloat16)
    assert outputs(halved, images).dtype == torch.bfloat16
    assert outputs(halved.to(torch.float64), images).dtype == torch.float64


def test_half_precision_is_close() -> None:
    network = with_statistics(TinyNetwork())
    images = noise(4, (96, 96), seed=0)
    for dtype in (torch.float16, torch.bfloat16):
        tuned = tune(network, dtype=dtype)
        assert_close(outputs(tuned, images), outputs(network, images), 3e-2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tune(torch.jit.script(nn.ReLU())), "expected a torch.nn.Module"),
        (lambda: tune(torch.relu), "expected a torch.nn.Module"),  # type: ignore[arg-type]
        (lambda: tune(nn.ReLU(), dtype=torch.int8), "floating point type, got torch.int8"),
    ],
)
def test_wrong_arguments(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make()


@pytest.fixture
def eager_compiler(monkeypatch: pytest.MonkeyPatch) -> Any:
    """torch.compile without the part that takes long; counts the shapes it was given."""
    shapes: list[tuple[Any, ...]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        shapes.append(tuple(t.shape for t in inputs if isinstance(t, Tensor) and t.ndim == 4)[-1:])
        return graph

    compiler = torch.compile

    def compile(network: nn.Module, **options: Any) -> Any:
        options.pop("options")
        return compiler(network, backend=backend, **options)

    monkeypatch.setattr(torch, "compile", compile)
    torch.compiler.reset()
    yield shapes
    torch.compiler.reset()


class Smooth(TinyNetwork):
    """Without a ReLU, so that small batches are not programs, but compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions[2] = nn.GELU()
        self.convolutions[4] = nn.GELU()


def test_a_compiled_network_compiles_three_times_at_most(eager_compiler: list[Any]) -> None:
    network = with_statistics(Smooth())
    tuned = [tune(network, compile=True) for _ in range(6)]  # more than torch's own limit
    compiled = []
    for one in tuned:
        eager_compiler.clear()
        for batch in (7, 7, 5, 6, 3, 1, 2, 1, 9, 7):
            images = noise(batch, (96, 96), seed=batch)
            assert_close(outputs(one, images), outputs(network, images))
        compiled.append(len(eager_compiler))
    # With this compiler, which does not freeze the weights, later networks find it done.
    assert compiled[0] == 3
    assert max(compiled) == 3


class ByBatch(TinyNetwork):
    """Has code of its own for large batches, as PyTorch's products have."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x)
        return 1 * out if len(x) > 15 else out


def test_batches_that_the_code_for_all_is_not_for_are_compiled(eager_compiler: list[Any]) -> None:
    network = with_statistics(ByBatch())
    tuned = tune(network, compile=True)
    # PyTorch's limit is for all networks of one class; others may have used it up.
    with torch._dynamo.config.patch(recompile_limit=2):
        for batch in (2, 3, 32, 31, 4):
            images = noise(batch, (96, 96), seed=batch)
            assert_close(outputs(tuned, images), outputs(network, images))
    assert len(eager_compiler) == 3  # 2, those up to 15, and those above


def test_the_shape_of_a_stream_is_compiled_once(eager_compiler: list[Any]) -> None:
    plain = tiny_classifier(1)
    for network in (plain.glance, plain.focus):
        network.convolutions = Smooth().convolutions.eval()
    model = plain.tuned(compile=True)
    images = noise(23, (104, 112), seed=3)
    expected = plain.classify(images)
    got = list(model.stream(images, batch=4, image_size=(104, 112)))
    assert [one.found.label for one in got if one.found] == expected.label.tolist()
    # glance and focus, each for whole batches and for the last one: frozen weights are not shared
    assert len(eager_compiler) == 4


def compiled_graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.fx.Graph]:
    """The graphs that `torch.compile` gets to compile from now on, which run as they are."""
    graphs: list[torch.fx.Graph] = []
    compiler = torch.compile

    def watched(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph.graph)
        return graph.forward

    monkeypatch.setattr(
        torch,
        "compile",
        lambda network, options, **rest: compiler(network, backend=watched, **rest),
    )
    return graphs


def test_compiled_weights_are_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU: torch looks this up before it applies the options of `torch.compile`."""
    graphs = compiled_graphs(monkeypatch)
    network = Smooth().eval()
    outputs(tune(network, compile=True), noise(2, (96, 96), seed=0))
    assert [any(node.op == "get_attr" for node in graph.nodes) for graph in graphs] == [True]


class ReadsValues(TinyNetwork):
    def forward(self, images: Tensor) -> Tensor:
        out = super().forward(images)
        return out if float(out.detach().sum()) == 0 else out + 0


def test_what_cannot_be_one_graph_is_compiled_in_parts(eager_compiler: list[Any]) -> None:
    network = ReadsValues().eval()
    tuned = tune(network, compile=True)
    images = noise(2, (96, 96), seed=0)
    with pytest.warns(UserWarning, match="ReadsValues is compiled in parts"):
        got = outputs(tuned, images)
    assert_close(got, outputs(network, images))
    assert eager_compiler


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = torch.compile

    def broken(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        raise OSError("there is no C++ compiler")

    def compile(network: nn.Module, **options: Any) -> Any:
        options.pop("options")
        return compiler(network, backend=broken, **options)

    monkeypatch.setattr(torch, "compile", compile)
    tuned = tune(Smooth().eval(), compile=True)
    with pytest.raises(RuntimeError, match=r"Smooth on images \(2, 3, 96, 96\) on cpu: .*no C"):
        tuned(noise(2, (96, 96), seed=0))


def test_the_whole_classifier() -> None:
    model = tiny_classifier(1)
    model.thresholds = (0.5, 0.7, 0.8, 0.9)
    images = noise(12, (104, 112), seed=3)
    expected = model.classify(images)
    tuned = model.tuned()
    assert tuned.is_folded
    assert isinstance(tuned.glance, TunedNetwork)
    assert tuned.macs_per_exit((104, 112)) == model.fold().macs_per_exit((104, 112))
    for one in (tuned, tuned.tuned(), model.fold().tuned()):
        got = one.classify(images)
        assert torch.equal(got.exit_step, expected.exit_step)
        torch.testing.assert_close(got.confidence, expected.confidence, equal_nan=True)
    half = model.tuned(dtype=torch.bfloat16)
    assert half.glance.dtype == half.focus.dtype == torch.bfloat16
    assert next(half.anchor.parameters()).dtype == torch.float32  # on the CPU
    got = half.classify(images, exit_at=5)
    error = got.confidence - model.classify(images, exit_at=5).confidence
    assert error.abs().max() < 0.1
    assert len(list(half.stream(images, image_size=(104, 112), batch=4))) == 12
    assert model.focus.convolutions[1].weight.requires_grad


@pytest.mark.parametrize("where", ["an image", "a weight", "a norm"])
def test_what_is_no_number_stays_none(where: str) -> None:
    """A network that diverged must not give sure answers: oneDNN's ReLU makes 0 of NaN."""
    network = build_backbone("resnet18", 3).eval()
    images = noise(2, (64, 64), 0)
    nothing = float("nan")
    if where == "an image":
        images[0, 0, 20, 20] = nothing
    elif where == "a weight":
        network.conv1.weight.data[0] = nothing
    else:
        network.bn1.running_mean[0] = nothing
    with torch.no_grad():
        expected = network(images)
    assert expected[0].isnan().all()
    found = tune(network, image_size=(64, 64))(images)
    assert torch.equal(found.isnan(), expected.isnan())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_an_exchanged_module_is_seen(name: str) -> None:
    network, other = backbone(name), with_statistics(build_backbone(name, 10), seed=2)
    images = noise(2, (64, 64), seed=0)
    tuned = tune(network)
    outputs(tuned, images)
    last = "layer4" if name == "resnet18" else "classifier"
    setattr(network, last, getattr(other, last))
    for module in (getattr(other, last), getattr(tune(other).network, last)):
        setattr(tuned.network, last, copy.deepcopy(module))
        assert_close(outputs(tuned, images), outputs(network, images))

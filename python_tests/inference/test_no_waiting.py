"""Nothing waits for a GPU but where it says so; seen on tensors that only pretend to be on one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_stream import SIZE, assert_equal_to_batched, spread_thresholds
from tiny_networks import noise, tiny_classifier
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from anchornet_ext import _extension
from anchornet_ext.inference import TwoStageClassifier, classification, early_exit, exit_state
from anchornet_ext.inference.exit_rules import exit_rules
from anchornet_ext.inference.passes import plain_passes
from anchornet_ext.inference.stream_state import Outcome, PlacedPass, StreamState
from anchornet_ext.policy.exit_policy import ExitPolicy

aten = torch.ops.aten
READS = {
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero,
    aten._unique2, aten.unique_dim, aten.repeat_interleave, aten.bincount,
}  # fmt: skip


class NoWaiting(TorchDispatchMode):
    """Raises at whatever would have the host wait for a device."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        packet = getattr(func, "overloadpacket", None)
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if packet in READS:
            raise AssertionError(f"{packet} reads what a device has yet to compute")
        if packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
            masks = [leaf for leaf in leaves[1:] if leaf.dtype in (torch.bool, torch.uint8)]
            assert not masks, "a mask as an index has its true elements counted"
        out = func(*args, **kwargs)
        devices = {leaf.device.type for leaf in (*leaves, *tree_leaves(out)) if _is_array(leaf)}
        if packet in (aten._to_copy, aten.copy_) and len(devices) > 1:
            assert kwargs.get("non_blocking") or True in args[2:], "a copy that is waited for"
        return out


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: bool((x > 0).any()),
    ],
)
def test_waiting_is_noticed(wait: Callable[[Tensor], Any]) -> None:
    with pytest.raises(AssertionError), NoWaiting():
        wait(torch.ones(3))


def pretended(model: TwoStageClassifier, mode: FakeTensorMode) -> TwoStageClassifier:
    """A copy without values on a CUDA device that need not be there."""
    memo: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        with mode:
            fake = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda:0"
            )
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(fake, requires_grad=False) if is_parameter else fake
    return copy.deepcopy(model, memo)


@pytest.fixture
def mode(monkeypatch: pytest.MonkeyPatch) -> FakeTensorMode:
    monkeypatch.setattr(_extension, "require_device", lambda device: None)
    # Pinned memory needs a driver. What goes through here does not wait: that is its purpose.
    uploads: list[tuple[int, ...]] = []

    def to_device(tensor: Tensor, device: torch.device) -> Tensor:
        uploads.append(tuple(tensor.shape))
        return tensor.to(device, non_blocking=True)

    monkeypatch.setattr(exit_state, "to_device", to_device)
    monkeypatch.setattr(classification, "to_device", to_device)
    return FakeTensorMode()


POLICIES = [
    ExitPolicy((0.5, 0.6, 0.7, 0.8)),
    ExitPolicy((0.5, 0.6, 0.7, 0.8), (1.0, 1.5, 0.5, 1.0, 2.0), "surest"),
]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("criterion", ["logits", "probabilities"])
@pytest.mark.parametrize("pixels", [torch.float32, torch.uint8])
def test_classify_reads_one_number_a_step(
    mode: FakeTensorMode,
    monkeypatch: pytest.MonkeyPatch,
    policy: ExitPolicy,
    criterion: Any,
    pixels: torch.dtype,
) -> None:
    model = pretended(tiny_classifier(1, criterion=criterion).tuned(), mode)
    stay = iter([7, 5, 5, 2])
    asked: list[Tensor] = []

    def read_count(count: Tensor) -> int:
        assert count.ndim == 0
        asked.append(count)
        return next(stay)

    monkeypatch.setattr(early_exit, "read_count", read_count)
    with mode:
        images = torch.empty(8, 3, *SIZE, dtype=pixels, device="cuda:0")
        model.normalisation()
        # Mean and deviation are copied there once for all batches; see ops._calls.numbers.
        means = {name: torch.empty(3, device="cuda:0") for name in ("mean", "std")}
        normalisation = {**means, "dtype": torch.float32}
        monkeypatch.setattr(model, "normalisation", lambda: normalisation, raising=True)
        with NoWaiting():
            found = model.classify(images, policy=policy)
            for field in fields(found):  # each is made when it is asked for
                getattr(found, field.name)
    assert len(asked) == 4  # none after the last exit
    assert found.label.shape == (8,)
    assert found.label.is_cuda
    assert found.activation_map.shape[0] == 7


@pytest.mark.parametrize("policy", POLICIES)
def test_the_passes_of_a_stream_never_wait(mode: FakeTensorMode, policy: ExitPolicy) -> None:
    model = pretended(tiny_classifier(1).tuned(), mode)
    rules = exit_rules(model, 4, policy=policy)
    with mode, torch.no_grad():
        state = StreamState(model, plain_passes(model, SIZE), rules, slots=12, batch=4)
        images = state._fixed
        assert images is not None
        images.is_bytes = False
        images._arrived = torch.empty(4, 3, *SIZE, device="cuda:0")
        images._rows = torch.empty(13, 3, *SIZE, device="cuda:0")
        places = torch.empty(3, 4, dtype=torch.int64, device="cuda:0")
        for run in state._plain.values():  # what is copied once is copied now
            run(places)
        with NoWaiting():
            outcomes = [run(places) for run in state._plain.values()]
            images.keep_all(places[0])
    assert [len(outcome[0]) for outcome in outcomes] == [4, 4, 4]
    assert all(tensor.is_cuda for outcome in outcomes for tensor in outcome)


class HostGraphs:
    """Stands for CUDA graphs: the same memory in every call, and no waiting between."""

    def __init__(self) -> None:
        self.recorded: list[str] = []
        self.replays = 0

    def __call__(self, run: PlacedPass, places: Tensor) -> PlacedPass:
        self.recorded.append(run.__name__)
        static = places.clone()
        run(static)
        with NoWaiting():
            outcome = run(static)

        def replay(places: Tensor) -> Outcome:
            self.replays += 1
            assert places.shape == static.shape
            static.copy_(places)
            with NoWaiting():
                new = run(static)
            for target, tensor in zip(outcome, new, strict=True):
                target.copy_(tensor)
            return outcome

        return replay


@settings(max_examples=12, deadline=None)
@given(
    count=st.integers(1, 21),
    batch=st.integers(1, 5),
    answer=st.sampled_from(["last", "surest"]),
    temperatures=st.sampled_from([None, (1.0, 1.5, 0.5, 1.0, 2.0)]),
    mixed=st.booleans(),
)
def test_recorded_passes_give_the_same_results(
    count: int, batch: int, answer: Any, temperatures: Any, mixed: bool
) -> None:
    model = tiny_classifier(1)
    images = noise(count, SIZE, seed=3)
    policy = ExitPolicy(spread_thresholds(model, images), temperatures, answer)
    pixels = (images.sigmoid() * 255).to(torch.uint8)
    normalised = model.preprocessing.normalise(pixels)
    source = [(normalised if mixed and n % 3 == 2 else pixels)[n] for n in range(count)]
    graphs = HostGraphs()
    got = list(model.stream(source, batch=batch, policy=policy, image_size=SIZE, graphs=graphs))
    assert_equal_to_batched(got, model.classify(normalised, policy=policy))
    # Once each; again when the images were given other memory, as the first float came.
    assert max(graphs.recorded.count(name) for name in graphs.recorded) <= 1 + mixed
    assert graphs.recorded[0] == "_glance"
    assert graphs.replays >= -(-count // batch)


def test_graphs_need_a_gpu() -> None:
    with pytest.raises(ValueError, match="CUDA device"):
        tiny_classifier().stream([], graphs=True)

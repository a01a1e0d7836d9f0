"""Networks with intermediate classifiers: lazy is the same as all at once, and does no more."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from anchornet_ext.models.exits import IMAGES, SCHEDULES, ExitNetwork, Step


class Mix(nn.Module):
    """A linear map of the sum of its inputs: (B, 3, 2, 2), or (B, 3, 2, 2) to (B, 5) logits."""

    def __init__(self, logits: bool = False) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 5 if logits else 12, bias=False, dtype=torch.float64)
        self.logits = logits
        self.runs = 0

    def forward(self, *inputs: Tensor) -> Tensor:
        self.runs += 1
        mixed: Tensor = self.linear(sum(inputs[1:], inputs[0]).flatten(1))
        return mixed if self.logits else mixed.tanh().view(-1, 3, 2, 2)


@st.composite
def networks(draw: st.DrawFn) -> tuple[ExitNetwork, dict[str, tuple[str, ...]]]:
    """Any graph of steps, with some of them exits."""
    count = draw(st.integers(1, 12))
    exits = sorted(draw(st.sets(st.integers(0, count - 1), min_size=1)))
    steps: dict[str, Step] = {}
    sources = [IMAGES]
    torch.manual_seed(draw(st.integers(0, 99)))
    for i in range(count):
        read = draw(st.lists(st.sampled_from(sources), min_size=1, max_size=3, unique=True))
        steps[f"step{i}"] = Step(Mix(i in exits), tuple(read))
        if i not in exits:
            sources.append(f"step{i}")
    schedule = draw(st.sampled_from(SCHEDULES))
    network = ExitNetwork(steps, [f"step{i}" for i in exits], 5, schedule).eval()
    return network, {name: step.inputs for name, step in steps.items()}


def plain(network: ExitNetwork, inputs: dict[str, tuple[str, ...]], images: Tensor) -> Tensor:
    """Every step in order."""
    values = {IMAGES: images}
    for name, sources in inputs.items():
        values[name] = network.steps[name](*[values[source] for source in sources])
    return torch.stack([values[name] for name in network.exits])


def runs(network: ExitNetwork) -> dict[str, int]:
    return {name: step.runs for name, step in network.steps.items()}


def behind(name: str, inputs: dict[str, tuple[str, ...]]) -> set[str]:
    if name == IMAGES:
        return set()
    return {name}.union(*(behind(source, inputs) for source in inputs[name]))


@settings(max_examples=100, deadline=None)
@given(made=networks(), data=st.data())
def test_lazy_equals_all_at_once(
    made: tuple[ExitNetwork, dict[str, tuple[str, ...]]], data: st.DataObject
) -> None:
    network, inputs = made
    images = torch.randn(6, 3, 2, 2, dtype=torch.float64)
    expected = plain(network, inputs, images)  # (T, B, n)
    torch.testing.assert_close(network(images), expected)
    for step in network.steps.values():
        step.runs = 0
    progress = network.begin(images)
    rows = torch.arange(6)
    order = list(inputs)
    done: set[str] = set()
    for k, name in enumerate(network.exits):
        torch.testing.assert_close(progress.next_logits(), expected[k, rows])
        # Nothing twice, nothing too early, nothing forgotten.
        done |= set(order[: order.index(name) + 1])
        wanted = done
        if network.schedule == "needed":
            wanted = set().union(*(behind(exit_, inputs) for exit_ in network.exits[: k + 1]))
        assert runs(network) == {step: int(step in wanted) for step in order}
        # Any selection, in any order: none, all, or something between.
        kept = torch.tensor(
            data.draw(st.lists(st.integers(0, max(0, len(rows) - 1)), unique=True, max_size=6)),
            dtype=torch.int64,
        )[: len(rows)]
        progress.keep(kept)
        rows = rows[kept]
    with pytest.raises(RuntimeError, match=r"all .* exits are behind"):
        progress.next_logits()
    # Nothing is kept that nobody reads any more.
    assert set(progress._values) <= {IMAGES}  # type: ignore[attr-defined]
    if any(IMAGES in inputs[name] for name in runs(network) if runs(network)[name]):
        assert not progress._values  # type: ignore[attr-defined]


@settings(max_examples=30, deadline=None)
@given(made=networks())
def test_macs_are_those_that_run(
    made: tuple[ExitNetwork, dict[str, tuple[str, ...]]],
) -> None:
    network, _ = made
    table = network.macs_per_exit((2, 2))
    progress = network.begin(torch.zeros(3, 3, 2, 2, dtype=torch.float64))
    with FlopCounterMode(display=False) as counter:
        for macs in table:
            progress.next_logits()
            assert counter.get_total_flops() == 2 * 3 * macs
    assert all(step.runs <= 1 for step in network.steps.values())


def tiny(schedule: str = "blocks") -> ExitNetwork:
    steps = {
        "a": Step(Mix(), (IMAGES,)),
        "out1": Step(Mix(True), ("a",)),
        "unread": Step(Mix(), ("a",)),
        "b": Step(Mix(), ("a",)),
        "out2": Step(Mix(True), ("b", "a")),
    }
    return ExitNetwork(steps, ("out1", "out2"), 5, schedule)


def test_schedule_can_change() -> None:
    network = tiny().eval()
    assert network.macs_per_exit((2, 2)) == (204, 552)
    network.schedule = "needed"
    assert network.macs_per_exit((2, 2)) == (204, 408)
    with pytest.raises(ValueError, match="schedule must be one of blocks, needed, not 'lazy'"):
        network.schedule = "lazy"
    assert network.schedule == "needed"


def test_copies_are_whole_and_their_own() -> None:
    network = tiny("needed").eval()
    images = torch.randn(2, 3, 2, 2, dtype=torch.float64)
    expected = network(images)
    for copied in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
        torch.testing.assert_close(copied(images), expected)
        network.load_state_dict(copied.state_dict())


def test_training_gives_gradients_to_every_exit() -> None:
    network = tiny("needed").train()
    network(torch.randn(2, 3, 2, 2, dtype=torch.float64)).sum().backward()
    without = [name for name, p in network.named_parameters() if p.grad is None]
    assert without == ["steps.unread.linear.weight"]


def test_bad_input() -> None:
    network = tiny()
    images = torch.zeros(1, 3, 2, 2, dtype=torch.float64)
    with pytest.raises(ValueError, match="ExitNetwork is in training mode"):
        network.begin(images)
    network.eval()
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\), got \(3, 2, 2\)"):
        network.begin(images[0])
    with pytest.raises(TypeError, match=r"floating point and normalised, got torch\.uint8"):
        network.begin(images.to(torch.uint8))
    progress = network.begin(images)
    with pytest.raises(ValueError, match=r"rows must be \(B,\) int64, got \(1,\) torch.bool"):
        progress.keep(torch.tensor([True]))
    with pytest.raises(ValueError, match="does not take images of 3x3"):
        network.macs_per_exit((3, 3))


def test_bad_graphs() -> None:
    with pytest.raises(ValueError, match=r"'a' reads \['b'\], which no earlier step makes"):
        ExitNetwork({"a": Step(Mix(), ("b",)), "b": Step(Mix(), (IMAGES,))}, ["b"], 5)
    for exits in ([], ["c"], ["b", "a"], ["a", "a"]):
        with pytest.raises(ValueError, match="exits must be steps in their order"):
            ExitNetwork({"a": Step(Mix(), (IMAGES,)), "b": Step(Mix(), (IMAGES,))}, exits, 5)

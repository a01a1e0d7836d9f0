"""Early exit in MSDNet and RANet: as if each image were alone, at the cost in the table."""

from __future__ import annotations

import math
from contextlib import ExitStack
from functools import cache

import pytest
import torch
from devices import on_devices
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_networks import noise
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from anchornet_ext.inference.early_exit import evaluating
from anchornet_ext.inference.lazy_exits import ExitClassification, classify
from anchornet_ext.models.exits import SCHEDULES, ExitNetwork
from anchornet_ext.models.msdnet import MSDNet, MSDNetConfig
from anchornet_ext.models.ranet import RANet, RANetConfig
from anchornet_ext.policy.exit_policy import ExitPolicy

SIZE = (32, 32)
MAKE = {
    "msdnet": lambda: MSDNet(4, MSDNetConfig(blocks=4, base=2, step=1, channels=4, growth=4)),
    "ranet": lambda: RANet(
        4, RANetConfig((1, 2, 2), (2, 1, 1), (2, 1, 1), step=2, channels=4, growth=4)
    ),
}
names = pytest.mark.parametrize("name", MAKE)


@cache
def network(name: str, dtype: torch.dtype = torch.float64) -> ExitNetwork:
    """In eval mode, its confidences spread out and its batch norms with statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = MAKE[name]()
        made.train()
        with torch.no_grad():
            for seed in range(5):
                made(noise(16, SIZE, seed))
            for module in made.modules():
                if isinstance(module, nn.Linear):
                    module.weight.mul_(6)
    return made.eval().to(dtype)


def one_by_one(model: ExitNetwork, images: Tensor, thresholds: list[float]) -> list[int]:
    """The exit where each image leaves, from all exits' logits of that image alone."""
    exits = []
    for image in images:
        with torch.no_grad():
            confidence = model(image[None])[:, 0].float().softmax(1).amax(1).tolist()
        over = [c > limit for c, limit in zip(confidence, thresholds, strict=False)]
        exits.append(over.index(True) + 1 if True in over else model.num_exits)
    return exits


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_an_image_never_depends_on_the_others(data: st.DataObject) -> None:
    # In float64: in float32 a library that sums a smaller batch in another order may move an image
    # over a threshold.
    model = network(data.draw(st.sampled_from(sorted(MAKE)), "network"))
    model.schedule = data.draw(st.sampled_from(SCHEDULES), "schedule")
    count = data.draw(st.integers(0, 7), "images")
    images = noise(count, SIZE, data.draw(st.integers(0, 99), "seed"), torch.float64)
    limit = st.one_of(st.floats(0.25, 1), st.sampled_from([-1.0, 0.0, 1.0, 2.0, math.inf]))
    thresholds = [data.draw(limit) for _ in range(model.num_exits - 1)]
    found = classify(model, images, thresholds)
    assert found.exit_step.tolist() == one_by_one(model, images, thresholds)

    with torch.no_grad():
        logits = model(images).float()  # (T, B, n)
    places = torch.arange(count)
    chosen = logits[found.exit_step - 1, places] if count else logits[0]
    torch.testing.assert_close(found.probabilities, chosen.softmax(1))
    assert found.label.tolist() == chosen.argmax(1).tolist()
    reached = torch.arange(model.num_exits) < found.exit_step[:, None]  # (B, T)
    confidence, label = logits.softmax(2).max(2)
    expected = torch.where(reached, confidence.T, math.nan)
    torch.testing.assert_close(found.confidence, expected, equal_nan=True)
    assert torch.equal(found.step_label, torch.where(reached, label.T, -1))

    # Another order, and in two batches.
    order = torch.tensor(data.draw(st.permutations(range(count))), dtype=torch.int64)
    cut = data.draw(st.integers(0, count), "cut")
    for rows in (order[:cut], order[cut:]):
        part = classify(model, images[rows], thresholds)
        assert torch.equal(part.exit_step, found.exit_step[rows])
        assert torch.equal(part.label, found.label[rows])
        torch.testing.assert_close(part.probabilities, found.probabilities[rows])


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_what_runs_is_what_the_table_says(data: st.DataObject) -> None:
    model = network(data.draw(st.sampled_from(sorted(MAKE)), "network"))
    model.schedule = data.draw(st.sampled_from(SCHEDULES), "schedule")
    table = model.macs_per_exit(SIZE)
    assert list(table) == sorted(set(table))
    images = noise(6, SIZE, data.draw(st.integers(0, 99), "seed"), torch.float64)
    thresholds = [data.draw(st.floats(0.3, 0.8)) for _ in range(model.num_exits - 1)]
    with FlopCounterMode(display=False) as counter:
        found = classify(model, images, thresholds)
    assert counter.get_total_flops() == 2 * int(found.macs.sum())
    assert found.macs.tolist() == [table[step - 1] for step in found.exit_step.tolist()]
    assert found.full_macs == table[-1]


@names
def test_float32_is_float64_but_for_rounding(name: str) -> None:
    images = noise(8, SIZE, 1)
    # No image is within rounding of this threshold at any exit.
    thresholds = [0.6] * (network(name).num_exits - 1)
    exact = classify(network(name), images.double(), thresholds)
    assert ((exact.confidence - 0.6).abs().nan_to_num(1) > 1e-4).all()
    found = classify(network(name, torch.float32), images, thresholds)
    assert torch.equal(found.exit_step, exact.exit_step)
    assert len(found.exit_step.unique()) > 1
    torch.testing.assert_close(found.probabilities, exact.probabilities, rtol=1e-4, atol=1e-5)


@names
def test_leaving_at_a_given_exit(name: str) -> None:
    model, images = network(name), noise(3, SIZE, 2, torch.float64)
    table = model.macs_per_exit(SIZE)
    with torch.no_grad():
        logits = model(images).float()
    for exit_at in range(1, model.num_exits + 1):
        with FlopCounterMode(display=False) as counter:
            found = classify(model, images, exit_at=exit_at)
        assert counter.get_total_flops() == 2 * 3 * table[exit_at - 1]
        assert (found.exit_step == exit_at).all()
        torch.testing.assert_close(found.probabilities, logits[exit_at - 1].softmax(1))
        assert found.confidence[:, exit_at:].isnan().all()


@names
@on_devices
def test_nobody_and_everybody_leaves(name: str, device: str) -> None:
    model = network(name).to(device)
    images = noise(3, SIZE, 3, torch.float64).to(device)
    last = model.num_exits
    assert classify(model, images, [-1.0] * (last - 1)).exit_step.tolist() == [1, 1, 1]
    assert classify(model, images, [1.0] * (last - 1)).exit_step.tolist() == [last] * 3
    assert classify(model, images).exit_step.tolist() == [last] * 3
    none = classify(model, images[:0])
    assert none.label.shape == (0,)
    assert none.probabilities.shape == (0, 4)
    assert none.confidence.shape == (0, last)
    model.to("cpu")


@names
def test_a_confidence_equal_to_the_threshold_stays(name: str) -> None:
    model, images = network(name), noise(1, SIZE, 5, torch.float64)
    sure = classify(model, images, exit_at=1).confidence[0, 0]
    rest = [2.0] * (model.num_exits - 2)
    below = torch.nextafter(sure, torch.tensor(0.0))
    assert classify(model, images, [float(sure), *rest]).exit_step.tolist() == [model.num_exits]
    assert classify(model, images, [float(below), *rest]).exit_step.tolist() == [1]


def expected_surest(found: ExitClassification) -> list[int]:
    rows = [row[~row.isnan()].tolist() for row in found.confidence]
    return [max(range(len(row)), key=lambda t: (row[t], t)) + 1 for row in rows]


@names
def test_policy(name: str) -> None:
    model, images = network(name), noise(8, SIZE, 4, torch.float64)
    temperatures = tuple(1 + 0.5 * t for t in range(model.num_exits))
    policy = ExitPolicy((0.7,) * (model.num_exits - 1), temperatures, "surest")
    found = classify(model, images, policy=policy)
    with torch.no_grad():
        scaled = model(images).float() / torch.tensor(temperatures)[:, None, None]
    confidence = scaled.softmax(2).amax(2).T
    reached = ~found.confidence.isnan()
    torch.testing.assert_close(found.confidence[reached], confidence[reached])
    assert found.answer_step.tolist() == expected_surest(found)
    assert (found.answer_step < found.exit_step).any()
    chosen = scaled[found.answer_step - 1, torch.arange(8)].softmax(1)
    torch.testing.assert_close(found.probabilities, chosen)
    assert found.label.tolist() == chosen.argmax(1).tolist()


def test_logits_that_are_no_numbers_leave_last() -> None:
    model = MAKE["msdnet"]().eval()
    with torch.no_grad():
        model.steps["exit1"].linear.bias.fill_(math.nan)
    policy = ExitPolicy((0.0, 2.0, 2.0), answer="surest")
    found = classify(model, noise(2, SIZE, 0), policy=policy)
    assert found.exit_step.tolist() == [4, 4]
    assert (found.answer_step > 1).all()


def test_modes_are_put_back() -> None:
    model = MAKE["ranet"]().train()
    model.steps["exit1"].eval()
    modes = [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    classify(model, noise(2, SIZE, 0))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_another_thread_that_is_done_does_not_put_modes_back() -> None:
    model, images = MAKE["msdnet"]().train(), noise(2, SIZE, 0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    other = ExitStack()  # what another thread does meanwhile
    other.enter_context(evaluating(model.modules()))
    first = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    handle = first.register_forward_pre_hook(lambda *_: other.close())
    classify(model, images)
    handle.remove()
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@names
def test_bad_input(name: str) -> None:
    model, images = network(name), noise(1, SIZE, 0, torch.float64)
    most = model.num_exits
    with pytest.raises(ValueError, match=f"{most} exits need {most - 1} thresholds"):
        classify(model, images, [0.5])
    with pytest.raises(ValueError, match="a threshold is NaN"):
        classify(model, images, [math.nan] * (most - 1))
    with pytest.raises(ValueError, match=f"exit_at must be 1 to {most}, got 0"):
        classify(model, images, exit_at=0)
    with pytest.raises(ValueError, match="not both"):
        classify(model, images, [0.5] * (most - 1), exit_at=1)
    with pytest.raises(ValueError, match="not both"):
        classify(model, images, [0.5] * (most - 1), policy=ExitPolicy.never(most))
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\)"):
        classify(model, images[:, :1])
    with pytest.raises(TypeError, match="images must be a tensor, got ndarray"):
        classify(model, images.numpy())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"exit_at must be an integer, got 2\.0"):
        classify(model, images, exit_at=2.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="floating point"):
        classify(model, images.to(torch.uint8))

"""Algorithm 1 for a batch: equal to the plain one image at a time, and computing no more."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import torch
from devices import needs_cuda
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tiny_networks import CLASSES, noise, tiny_classifier
from torch import Tensor, nn

from anchornet_ext.inference import TwoStageClassifier
from anchornet_ext.inference.classification import Classification
from anchornet_ext.inference.early_exit import evaluating
from anchornet_ext.models import AnchorNet
from anchornet_ext.policy.calibration import applied, policy_outcome
from anchornet_ext.policy.exit_policy import ExitPolicy
from anchornet_ext.policy.exit_table import ExitTable
from anchornet_ext.reference.early_exit import Exit, classify_image, sequential_inference

NEVER, ALWAYS = 2.0, -1.0


def reference(
    model: TwoStageClassifier, images: Tensor, thresholds: tuple[float, ...], **rules: Any
) -> list[Exit]:
    return [
        classify_image(
            image,
            model.anchor,
            model.glance,
            model.focus,
            thresholds=thresholds,
            glance_size=model.glance_size,
            iou_threshold=model.iou_threshold,
            criterion=model.criterion,
            **rules,
        )
        for image in images
    ]


def assert_equal_to_reference(
    model: TwoStageClassifier, got: Classification, expected: list[Exit]
) -> None:
    assert got.exit_step.tolist() == [one.exit_step for one in expected]
    assert got.label.tolist() == [one.label for one in expected]
    assert got.answer_step.tolist() == [one.answer_step for one in expected]
    for b, one in enumerate(expected):
        used = one.exit_step
        torch.testing.assert_close(got.probabilities[b], one.probabilities)
        torch.testing.assert_close(got.confidence[b, :used].tolist(), one.confidence)
        assert got.confidence[b, used:].isnan().all()
        assert (got.step_label[b, used:] == -1).all()
        assert int(got.step_label[b, one.answer_step - 1]) == one.label
        assert got.top_left[b, : used - 1].tolist() == [list(place) for place in one.top_left]
        assert (got.top_left[b, used - 1 :] == -1).all()


thresholds_between = st.one_of(
    st.floats(0.2, 1.0), st.sampled_from([NEVER, ALWAYS, math.inf, -math.inf, 0.0, 1.0])
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_batched_equals_one_by_one(data: st.DataObject) -> None:
    # In float64, so that how a library sums a batch cannot move an image over a threshold.
    num_patches = data.draw(st.integers(1, 4), "num_patches")
    model = tiny_classifier(
        data.draw(st.integers(0, 3), "weights"),
        dtype=torch.float64,
        num_patches=num_patches,
        glance_size=data.draw(st.sampled_from([40, 95]), "glance_size"),
        iou_threshold=data.draw(
            st.one_of(
                st.floats(0.05, 0.9),
                st.lists(st.floats(0.05, 0.9), min_size=num_patches, max_size=num_patches),
            ),
            "iou_threshold",
        ),
        criterion=data.draw(st.sampled_from(["logits", "probabilities"]), "criterion"),
    )
    size = data.draw(st.tuples(st.integers(95, 130), st.integers(95, 130)), "size")
    images = noise(
        data.draw(st.integers(0, 6), "batch"), size, data.draw(st.integers(0, 99)), torch.float64
    )
    if data.draw(st.booleans(), "channels_last"):
        images = images.contiguous(memory_format=torch.channels_last)
    thresholds = tuple(
        data.draw(
            st.lists(thresholds_between, min_size=num_patches, max_size=num_patches), "thresholds"
        )
    )
    temperatures = data.draw(
        st.none() | st.tuples(*[st.floats(0.1, 10.0)] * (num_patches + 1)), "temperatures"
    )
    answer = data.draw(st.sampled_from(["last", "surest"]), "answer")
    policy = ExitPolicy(thresholds, temperatures, answer)
    lookahead = data.draw(
        st.just("free") | st.integers(1, 5) | st.lists(st.integers(1, 5), min_size=1), "lookahead"
    )
    expected = reference(model, images, thresholds, temperatures=temperatures, answer=answer)
    for one in expected:
        for confidence, threshold in zip(one.confidence, thresholds, strict=False):
            assume(abs(confidence - threshold) > 1e-9)
        highest, *lower = sorted(one.confidence, reverse=True)
        assume(answer == "last" or not lower or highest - lower[0] > 1e-9)
    got = model.classify(images, policy=policy, lookahead=lookahead)
    assert_equal_to_reference(model, got, expected)

    order = torch.tensor(data.draw(st.permutations(range(len(images))), "order"), dtype=torch.long)
    permuted = model.classify(images[order], policy=policy, lookahead=lookahead)
    assert torch.equal(permuted.answer_step, got.answer_step[order])
    assert torch.equal(permuted.exit_step, got.exit_step[order])
    assert torch.equal(permuted.label, got.label[order])
    assert torch.equal(permuted.top_left, got.top_left[order])
    assert torch.equal(permuted.macs, got.macs[order])
    torch.testing.assert_close(permuted.confidence, got.confidence[order], equal_nan=True)


class Counts:
    """How many images each network really sees."""

    def __init__(self, model: TwoStageClassifier) -> None:
        self.seen: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        first_layers: dict[str, nn.Module] = {
            "anchor": model.anchor.stem,
            "glance": model.glance,
            "focus": model.focus,
        }
        for name, module in first_layers.items():
            module.register_forward_pre_hook(self._counter(name))

    def _counter(self, name: str) -> Any:
        def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.seen[name] += len(inputs[0])
            self.calls[name] += 1

        return count


@pytest.mark.parametrize("folded", [False, True])
@pytest.mark.parametrize("criterion", ["logits", "probabilities"])
def test_exits_are_real(folded: bool, criterion: Any) -> None:
    model = tiny_classifier(1, criterion=criterion)
    model = model.fold() if folded else model
    images = noise(24, (120, 128), seed=3)
    model.macs_per_exit((120, 128))  # counted once, by running the networks
    # Thresholds in the middle of what comes so far, so that some leave at every exit.
    confidence = model.classify(images, exit_at=5).confidence[:, :4]
    thresholds: list[float] = []
    remaining = torch.ones(24, dtype=torch.bool)
    for step in range(4):
        thresholds.append(float(confidence[remaining, step].quantile(0.7)))
        remaining &= confidence[:, step] <= thresholds[-1]
    counts = Counts(model)
    got = model.classify(images, thresholds)
    left_at = Counter(got.exit_step.tolist())
    assert set(left_at) == {1, 2, 3, 4, 5}
    assert counts.seen["glance"] == 24
    assert counts.seen["anchor"] == 24 - left_at[1]
    assert counts.seen["focus"] == sum((step - 1) * count for step, count in left_at.items())
    costs = model.macs_per_exit((120, 128))
    assert got.macs.tolist() == [costs[step - 1] for step in got.exit_step.tolist()]
    assert got.full_macs == costs[-1]
    assert got.anchor_ran.tolist() == (got.exit_step > 1).nonzero()[:, 0].tolist()
    assert got.activation_map.shape == (24 - left_at[1], 4, 5)
    assert ((got.anchor_label >= 0) == (got.exit_step > 1)).all()


@pytest.mark.parametrize("exit_at", [1, 2, 3, 4, 5])
def test_exit_at_computes_just_so_far(exit_at: int) -> None:
    model = tiny_classifier()
    images = noise(4, (112, 112), seed=4)
    model.macs_per_exit((112, 112))
    counts = Counts(model)
    got = model.classify(images, exit_at=exit_at)
    assert got.exit_step.tolist() == [exit_at] * 4
    assert (
        counts.seen
        == Counter(glance=4, anchor=4 * (exit_at > 1), focus=4 * (exit_at - 1)) - Counter()
    )
    summed = model.anytime_logits(images)[exit_at - 1]
    torch.testing.assert_close(got.probabilities, summed.softmax(dim=1))


def test_everybody_leaves_at_the_glance_when_the_threshold_is_below_zero() -> None:
    model = tiny_classifier()
    model.macs_per_exit((100, 100))
    counts = Counts(model)
    got = model.classify(noise(3, (100, 100), seed=5), (ALWAYS, NEVER, NEVER, NEVER))
    assert got.exit_step.tolist() == [1, 1, 1]
    assert counts.calls == {"glance": 1}
    assert got.activation_map.shape == (0, 1, 1)
    assert got.anchor_ran.tolist() == []


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_bytes_are_classified_like_the_images_that_they_become(
    memory_format: torch.memory_format,
) -> None:
    model = tiny_classifier(num_patches=2).fold()
    generator = torch.Generator().manual_seed(3)
    raw = torch.randint(0, 256, (6, 3, 120, 111), dtype=torch.uint8, generator=generator)
    raw = raw.contiguous(memory_format=memory_format)
    normalised = model.preprocessing.normalise(raw)
    confidence = model.classify(normalised, exit_at=3).confidence
    threshold = confidence[:, 0].sort().values[2:4].mean().item()  # some leave at the glance
    for options in ({"exit_at": 3}, {"thresholds": (threshold, NEVER)}):
        got, expected = (model.classify(x, **options) for x in (raw, normalised))
        assert got.exit_step.tolist() == expected.exit_step.tolist()
        assert torch.equal(got.top_left, expected.top_left)
        torch.testing.assert_close(got.probabilities, expected.probabilities)
        torch.testing.assert_close(
            got.activation_map, expected.activation_map, rtol=1e-4, atol=1e-5
        )
    assert model.classify(raw[:0]).label.shape == (0,)


def test_an_empty_batch_runs_nothing() -> None:
    model = tiny_classifier()
    model.macs_per_exit((100, 100))
    counts = Counts(model)
    got = model.classify(noise(0, (100, 100), seed=0), (0.5,) * 4)
    assert not counts.calls
    assert got.label.shape == (0,)
    assert got.probabilities.shape == (0, CLASSES)
    assert got.confidence.shape == (0, 5)
    assert got.top_left.shape == (0, 4, 2)
    assert got.macs.shape == (0,)


@pytest.mark.parametrize(("size", "locations"), [((95, 95), 1), ((95, 103), 2), ((102, 111), 3)])
def test_images_of_few_locations_end_early(size: tuple[int, int], locations: int) -> None:
    model = tiny_classifier(dtype=torch.float64)
    images = noise(2, size, 6, torch.float64)
    got = model.classify(images, exit_at=5)
    assert got.exit_step.tolist() == [1 + locations] * 2
    assert_equal_to_reference(model, got, reference(model, images, (NEVER,) * 4))
    assert got.full_macs == model.macs_per_exit(size)[locations] == int(got.macs[0])
    assert len(model.anytime_logits(images)) == 1 + locations


def test_the_models_own_thresholds_are_used() -> None:
    images = noise(3, (104, 104), seed=7)
    one = tiny_classifier(thresholds=(NEVER, ALWAYS, NEVER, NEVER))
    assert one.classify(images).exit_step.tolist() == [2, 2, 2]
    assert one.classify(images, (ALWAYS,) * 4).exit_step.tolist() == [1, 1, 1]
    assert one.classify(images, exit_at=4).exit_step.tolist() == [4, 4, 4]
    assert tiny_classifier().classify(images).exit_step.tolist() == [5, 5, 5]


class Scripted(nn.Module):
    """Gives one row of logits a step, the same for every image; the last one again at the end."""

    def __init__(self, rows: list[list[float]], batch: int) -> None:
        super().__init__()
        self.rows = torch.tensor(rows)
        self.batch = batch  # images of a step; a pass may see several steps
        self.steps = 0

    def forward(self, images: Tensor) -> Tensor:
        steps = torch.arange(self.steps, self.steps + len(images) // self.batch)
        self.steps += len(steps)
        rows = self.rows[steps.clamp(max=len(self.rows) - 1)]
        return rows.repeat_interleave(self.batch, dim=0)


def scripted(*rows: list[float], batch: int = 1, **options: Any) -> TwoStageClassifier:
    """A model with these logits for the glance and for each patch, two classes."""
    glance, *patches = rows
    model = TwoStageClassifier(
        AnchorNet(2),
        Scripted([glance], batch),
        Scripted(patches, batch),
        num_patches=len(patches),
        **options,
    ).eval()
    model._network_macs = lambda name, size: 1  # type: ignore[method-assign]
    return model


def test_the_surest_answer_is_that_of_the_surest_input() -> None:
    # Sums: (2, 0), (1, 0), (1, 3), (0, 3), (0, 0). Surest for class 0, unsure, surest for class 1,
    # surer still, undecided.
    steps = ([2.0, 0], [-1.0, 0], [0.0, 3], [-1.0, 0], [0.0, -3])
    images = torch.zeros(2, 3, 128, 128)
    expected = {1: (0, 1, 2.0), 2: (0, 1, 2.0), 3: (1, 3, 2.0), 4: (1, 4, 3.0), 5: (1, 4, 3.0)}
    for exit_at, (label, answer_step, margin) in expected.items():
        model = scripted(*steps, batch=2, policy=ExitPolicy((0.5,) * 4, answer="surest"))
        got = model.classify(images, exit_at=exit_at)
        assert got.label.tolist() == [label] * 2
        assert got.answer_step.tolist() == [answer_step] * 2
        assert got.exit_step.tolist() == [exit_at] * 2
        sure = 1 / (1 + math.exp(-margin))
        assert got.probabilities[0, label].item() == pytest.approx(sure)
        last = scripted(*steps, batch=2).classify(images, exit_at=exit_at)
        assert last.answer_step.tolist() == [exit_at] * 2
        assert torch.equal(last.confidence.nan_to_num(), got.confidence.nan_to_num())
        assert torch.equal(last.step_label, got.step_label)


def test_of_equally_sure_inputs_the_later_answers() -> None:
    """Also where that equality is exact only in the last bit, and where nothing is known (NaN)."""
    images = torch.zeros(1, 3, 128, 128)
    surest = ExitPolicy((NEVER,) * 3, answer="surest")
    one = scripted([0.0, 1], [1.0, -1], [0.0, 0], [0.0, -1]).classify(images, policy=surest)
    # Sums (0, 1), (1, 0), (1, 0), (1, -1): the last is the surest.
    assert (one.answer_step.item(), one.label.item()) == (4, 0)
    two = scripted([0.0, 1], [1.0, -1], [0.0, 0], [-0.5, 0]).classify(images, policy=surest)
    assert (two.answer_step.item(), two.label.item()) == (3, 0)
    nan = scripted([0.0, 1], [0.0, 1], [math.nan, 0], [0.0, 9]).classify(images, policy=surest)
    assert (nan.answer_step.item(), nan.label.item()) == (2, 1)
    unknown = scripted([math.nan, 1], [0.0, 1], [0.0, 0], [0.0, 9])
    assert unknown.classify(images, policy=surest).answer_step.item() == 4


def test_temperatures_decide_who_leaves() -> None:
    """Sums (1, 0), (2, 0): softmax(1 / 0.1) is sure, softmax(2 / 10) is not."""
    images = torch.zeros(1, 3, 128, 128)
    steps = ([1.0, 0], [1.0, 0])
    for temperatures, exit_step in (((0.1, 10.0), 1), ((10.0, 0.1), 2), (None, 2)):
        got = scripted(*steps).classify(images, policy=ExitPolicy((0.9,), temperatures))
        assert got.exit_step.item() == exit_step
        temperature = 1.0 if temperatures is None else temperatures[exit_step - 1]
        sure = 1 / (1 + math.exp(-exit_step / temperature))
        assert got.confidence[0, exit_step - 1].item() == pytest.approx(sure)
        assert got.probabilities[0, 0].item() == pytest.approx(sure)


def test_the_surest_answer_computes_nothing_more() -> None:
    images = noise(8, (112, 112), seed=4)
    runs = []
    for answer in ("last", "surest"):
        model = tiny_classifier(1, policy=ExitPolicy((0.5, 0.6, 0.7, 0.8), None, answer))
        model.macs_per_exit((112, 112))
        counts = Counts(model)
        runs.append((model.classify(images), counts.seen, counts.calls))
    (last, *cost), (surest, *surest_cost) = runs
    assert surest_cost == cost
    assert torch.equal(last.exit_step, surest.exit_step)
    assert torch.equal(last.macs, surest.macs)


def test_thresholds_stand_for_a_policy_of_nothing_else() -> None:
    own = ExitPolicy((NEVER,) * 4, (0.5,) * 5, "surest")
    images = noise(5, (104, 104), seed=7)
    model = tiny_classifier(policy=own)
    plain = tiny_classifier().classify(images, (0.6,) * 4)
    got = model.classify(images, (0.6,) * 4)
    assert torch.equal(got.label, plain.label)
    assert torch.equal(got.probabilities, plain.probabilities)
    assert torch.equal(
        model.classify(images).confidence, tiny_classifier().classify(images, policy=own).confidence
    )


def table_of(model: TwoStageClassifier, images: Tensor, temperatures: list[float]) -> ExitTable:
    """All exits of all images; the label is class 0 for everybody."""
    columns = model.num_exits
    scaled = [
        model.classify(
            images,
            exit_at=columns,
            policy=ExitPolicy((NEVER,) * (columns - 1), (temperature,) * columns),
        )
        for temperature in temperatures
    ]
    plain = scaled[temperatures.index(1.0)]
    prediction = plain.step_label.int().numpy()
    confidence = torch.stack([found.confidence for found in scaled]).numpy()  # (G, N, T)
    return ExitTable(
        confidence=plain.confidence.numpy(),
        correct=prediction == 0,
        cost=np.array(model.macs_per_exit(tuple(images.shape[-2:])), dtype=np.float64),
        prediction=prediction,
        label=np.zeros(len(images), dtype=np.int32),
        temperatures=np.array(temperatures),
        scaled_confidence=confidence,
        scaled_nll=np.zeros_like(confidence),
    )


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_policy_does_to_images_what_it_does_to_their_table(data: st.DataObject) -> None:
    """What `calibrate` promises from an exit table is what the running system does."""
    grid = [0.5, 1.0, 2.0]
    model = tiny_classifier(data.draw(st.integers(0, 3)), num_patches=3)
    images = noise(10, (112, 120), seed=data.draw(st.integers(0, 99)))
    table = table_of(model, images, grid)
    policy = ExitPolicy(
        data.draw(st.tuples(*[st.floats(0.2, 1.0)] * 3)),
        data.draw(st.none() | st.tuples(*[st.sampled_from(grid)] * 4)),
        data.draw(st.sampled_from(["last", "surest"])),
    )
    sure = applied(table, policy).confidence
    # Batches of other sizes round otherwise.
    assume(np.abs(sure[:, :3] - np.array(policy.thresholds)).min() > 1e-5)
    ranked = np.sort(sure, axis=1)
    assume(policy.answer == "last" or np.diff(ranked, axis=1)[:, 1:].min() > 1e-5)
    expected = policy_outcome(table, policy)
    got = model.classify(images, policy=policy)
    assert (got.exit_step - 1).tolist() == expected.exit_index.tolist()
    assert (got.label == 0).double().mean().item() == pytest.approx(expected.accuracy)
    assert got.macs.double().mean().item() == pytest.approx(expected.cost)


def test_folding_changes_rounding_only() -> None:
    model = tiny_classifier(2)
    images = noise(6, (128, 120), seed=8)
    plain, folded = (m.classify(images, exit_at=5) for m in (model, model.fold()))
    assert torch.equal(plain.top_left, folded.top_left)
    torch.testing.assert_close(plain.confidence, folded.confidence, rtol=1e-4, atol=1e-5)
    assert (plain.macs > folded.macs).all()


def test_training_mode_is_left_alone_but_not_used() -> None:
    model = tiny_classifier()
    expected = model.classify(noise(2, (100, 100), seed=9)).probabilities
    model.train()
    model.focus.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    got = model.classify(noise(2, (100, 100), seed=9)).probabilities
    assert torch.equal(got, expected)
    assert not got.requires_grad
    assert model.anchor.training and model.glance.training and not model.focus.training  # noqa: PT018
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_another_thread_that_is_done_does_not_put_modes_back() -> None:
    """The modules are shared: in training mode again while this one runs, they would learn."""
    model = tiny_classifier()
    expected = model.classify(noise(2, (100, 100), seed=9)).probabilities
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    other = ExitStack()  # what another thread does meanwhile
    other.enter_context(evaluating(model.network_modules()))
    handle = model.glance.register_forward_hook(lambda *_: other.close())
    got = model.classify(noise(2, (100, 100), seed=9)).probabilities
    handle.remove()
    assert torch.equal(got, expected)
    assert all(module.training for module in model.network_modules())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize(
    ("thresholds", "exit_at", "message"),
    [
        ((0.5, 0.5), None, "need 4 thresholds, got 2"),
        ((0.5, math.nan, 0.5, 0.5), None, "NaN"),
        (None, 0, "exit_at must be 1 to 5, got 0"),
        (None, 6, "exit_at must be 1 to 5, got 6"),
        ((0.5,) * 4, 2, "not both"),
    ],
)
def test_wrong_exits_are_refused(thresholds: Any, exit_at: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_classifier().classify(noise(1, (95, 95), seed=0), thresholds, exit_at)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(3, 100, 100), ValueError, r"\(3, 100, 100\)"),
        (torch.zeros(1, 1, 100, 100), ValueError, r"\(1, 1, 100, 100\)"),
        (torch.zeros(1, 3, 94, 100), ValueError, "94x100"),
        (torch.zeros(1, 3, 100, 100, dtype=torch.int32), TypeError, "or uint8, got torch.int32"),
        (torch.zeros(1, 3, 100, 100).half(), TypeError, "AnchorNet's.*, got torch.float16"),
    ],
)
def test_wrong_images_are_refused(images: Tensor, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        tiny_classifier().classify(images)


def test_wrong_policies_are_refused() -> None:
    images = noise(1, (95, 95), seed=0)
    with pytest.raises(ValueError, match="5 exits need 4 thresholds, got 2"):
        tiny_classifier().classify(images, policy=ExitPolicy((0.5, 0.5)))
    with pytest.raises(ValueError, match="thresholds or a policy, not both"):
        tiny_classifier().classify(images, (0.5,) * 4, policy=ExitPolicy((0.5,) * 4))
    with pytest.raises(TypeError, match=r"an ExitPolicy, got 'a\.json'; ExitPolicy\.load reads a"):
        tiny_classifier().classify(images, policy="a.json")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"an ExitPolicy, got \(0\.5, 0\.5\)$"):
        tiny_classifier().policy = (0.5, 0.5)  # type: ignore[assignment]
    for wrong in (
        lambda model: model.classify(images, 0.5),
        lambda model: [*model.stream(images, thresholds=0.5)],
    ):
        with pytest.raises(TypeError, match=r"a sequence, a number for each exit .*, got 0\.5"):
            wrong(tiny_classifier())


def test_networks_of_other_classes_are_refused() -> None:
    model = tiny_classifier()
    model.focus.classifier = nn.Linear(16, CLASSES + 1)
    with pytest.raises(ValueError, match=r"the focus network gives \(1, 6\)"):
        model.classify(noise(1, (100, 100), seed=0))


def test_reference_takes_no_input_more_than_it_needs() -> None:
    taken: list[int] = []

    def inputs() -> Any:
        for step in range(3):
            taken.append(step)
            yield torch.tensor([float(step), 0.0])

    label, step, answer, probabilities, confidence, _ = sequential_inference(inputs(), (0.6, 0.6))
    # softmax(0, 0) = 1/2 stays, softmax(1, 0) = 0.73 leaves.
    assert (label, step, answer, taken) == (0, 2, 2, [0, 1])
    assert confidence == pytest.approx([0.5, 1 / (1 + math.exp(-1))])
    assert probabilities.tolist() == pytest.approx([confidence[1], 1 - confidence[1]])


def test_reference_averages_probabilities() -> None:
    logits = [torch.tensor([0.0, 0.0]), torch.tensor([2.0, 0.0])]
    found = sequential_inference(logits, (NEVER,), "probabilities")
    assert found.exit_step == 2
    assert found.probabilities[0].item() == pytest.approx((0.5 + 1 / (1 + math.exp(-2))) / 2)


@needs_cuda
@pytest.mark.parametrize("criterion", ["logits", "probabilities"])
def test_cuda_equals_cpu(criterion: Any) -> None:
    model = tiny_classifier(1, dtype=torch.float64, criterion=criterion)
    images = noise(12, (120, 128), 3, torch.float64)
    thresholds = (0.5, 0.7, 0.8, 0.9)
    expected = model.classify(images, thresholds)
    got = model.cuda().classify(images.cuda(), thresholds)
    for name in ("label", "exit_step", "top_left", "macs", "anchor_label"):
        assert torch.equal(getattr(got, name).cpu(), getattr(expected, name)), name
    torch.testing.assert_close(got.confidence.cpu(), expected.confidence, equal_nan=True)

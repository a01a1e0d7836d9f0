"""The exit table says what the running system does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from devices import on_devices
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_networks import CLASSES, TinyNetwork, noise, tiny_classifier
from torch.nn import functional

from anchornet_ext.data.transforms import Preprocessing
from anchornet_ext.evaluation.exit_values import TEMPERATURES, exit_values
from anchornet_ext.evaluation.plain_network import PlainNetwork
from anchornet_ext.evaluation.systems import ExitSystem, TwoStageSystem
from anchornet_ext.policy.exit_policy import ExitPolicy
from anchornet_ext.policy.exit_table import ExitTable
from anchornet_ext.policy.outcome import apply_thresholds

SIZE = (120, 120)
#: How close a confidence must be to a threshold for the two to disagree: a convolution gives other
#: last bits for another batch.
CLOSE = 1e-5


def two_stage(seed: int, **options: Any) -> TwoStageSystem:
    preprocessing = Preprocessing(SIZE[0], SIZE[0])
    classifier = tiny_classifier(seed, num_patches=2, preprocessing=preprocessing, **options)
    return TwoStageSystem(classifier.fold(), "tiny", "")


def table_of(system: ExitSystem, images: torch.Tensor, labels: torch.Tensor) -> ExitTable:
    grid = TEMPERATURES if system.temperature_scales else ()
    values = exit_values(system.anytime_logits(images), labels, grid)
    label = labels.cpu().numpy().astype(np.int32)
    return ExitTable(
        **values,
        correct=values["prediction"] == label[:, None],
        label=label,
        cost=np.array(system.macs_per_exit(), np.float64),
        temperatures=np.array(grid) if grid else None,
    )


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_the_table_decides_as_real_early_exit_does(data: st.DataObject) -> None:
    criterion = data.draw(st.sampled_from(["logits", "probabilities"]))
    system = two_stage(data.draw(st.integers(0, 3)), criterion=criterion)
    images = noise(data.draw(st.integers(1, 16)), SIZE, data.draw(st.integers(0, 99)))
    labels = torch.arange(len(images)) % CLASSES
    table = table_of(system, images, labels)

    # Among them the confidences themselves, where the comparison must be strict in both.
    values = st.sampled_from(table.confidence[:, 0].tolist()) | st.floats(0.2, 1)
    thresholds = [data.draw(values) for _ in range(2)]
    answer = data.draw(st.sampled_from(["last", "surest"]))
    temperatures = None
    if criterion == "logits" and data.draw(st.booleans()):
        temperatures = [data.draw(st.sampled_from(TEMPERATURES)) for _ in range(3)]
        table = table.with_temperatures(temperatures)
    policy = ExitPolicy(tuple(thresholds), temperatures, answer)
    found = system.classifier.classify(images, policy=policy)

    index = apply_thresholds(table.confidence, thresholds)
    real = found.exit_step.numpy() - 1
    answers = table.with_answer(answer).prediction
    assert answers is not None
    for n in range(len(images)):
        away = np.abs(table.confidence[n, :2] - np.float32(thresholds)).min()
        if index[n] != real[n]:
            assert away < CLOSE
            continue
        between = np.diff(np.sort(table.confidence[n, : index[n] + 1]))
        if answer == "last" or not (between < CLOSE).any():
            assert answers[n, index[n]] == found.label[n]
        reached = found.confidence[n, : index[n] + 1].numpy()
        np.testing.assert_allclose(table.confidence[n, : index[n] + 1], reached, atol=CLOSE)
        assert table.costs()[index[n]] == found.macs[n]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    exits=st.integers(1, 4),
    batch=st.integers(0, 6),
    classes=st.integers(1, 9),
    spread=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
)
def test_values_against_plain_torch(
    seed: int, exits: int, batch: int, classes: int, spread: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(exits, batch, classes, generator=generator).round(decimals=1)
    labels = torch.randint(classes, (batch,), generator=generator)
    values = exit_values(logits, labels, TEMPERATURES)
    probabilities = logits.double().softmax(dim=-1)
    shapes = {"confidence": np.float32, "prediction": np.int32, "top5": np.bool_}
    for name, dtype in shapes.items():
        assert values[name].shape == (batch, exits)
        assert values[name].dtype == dtype
        assert values[name].flags.c_contiguous
    for t in range(exits):
        p = probabilities[t]
        expected = p.amax(dim=1) if batch else p.sum(dim=1)
        np.testing.assert_allclose(values["confidence"][:, t], expected, atol=1e-6)
        np.testing.assert_array_equal(values["prediction"][:, t], logits[t].argmax(dim=1))
        for n in range(batch):
            ahead = int((logits[t, n] > logits[t, n, labels[n]]).sum())
            assert values["top5"][n, t] == (ahead < 5)
        for g, temperature in enumerate(TEMPERATURES):
            scaled = logits[t].double() / temperature
            nll = functional.cross_entropy(scaled, labels, reduction="none")
            sure = scaled.softmax(dim=1).amax(dim=1) if batch else nll
            np.testing.assert_allclose(values["scaled_confidence"][g, :, t], sure, atol=1e-6)
            np.testing.assert_allclose(values["scaled_nll"][g, :, t], nll, rtol=1e-5, atol=1e-5)
    one = TEMPERATURES.index(1.0)
    np.testing.assert_array_equal(values["scaled_confidence"][one], values["confidence"])


def test_the_temperature_grid() -> None:
    assert len(TEMPERATURES) == 17
    assert (TEMPERATURES[0], TEMPERATURES[8], TEMPERATURES[16]) == (0.25, 1.0, 4.0)
    np.testing.assert_allclose(np.diff(np.log(TEMPERATURES)), np.log(2) / 4)


@on_devices
def test_a_plain_network_is_a_system_of_one_exit(device: str) -> None:
    network = TinyNetwork()
    names = [f"c{i}" for i in range(CLASSES)]
    plain = PlainNetwork(network, "tiny", Preprocessing(64, 64), names, device)
    assert plain.num_exits == 1
    images = noise(6, (64, 64), 0).to(device)
    logits = plain.anytime_logits(images)
    assert logits.shape == (1, 6, CLASSES)
    torch.testing.assert_close(logits[0].cpu(), network.eval()(images.cpu()), rtol=1e-3, atol=1e-3)
    table = table_of(plain, images, torch.arange(6, device=device) % CLASSES)
    assert table.num_exits == 1
    assert table.costs().tolist() == list(plain.macs_per_exit())


@on_devices
def test_the_two_stage_classifier_on_devices(device: str) -> None:
    system = two_stage(0)
    system.classifier.to(device)
    images = noise(5, SIZE, 1)
    there = system.anytime_logits(images.to(device)).cpu()
    here = two_stage(0).anytime_logits(images)
    torch.testing.assert_close(there, here, rtol=1e-2, atol=2e-2)


def test_checksums_tell_weights_and_preprocessing_apart() -> None:
    names = [f"c{i}" for i in range(CLASSES)]
    torch.manual_seed(0)
    network = TinyNetwork()
    same = PlainNetwork(network, "a", Preprocessing(64, 64), names).checksum
    assert PlainNetwork(network, "b", Preprocessing(64, 64), names).checksum == same
    assert PlainNetwork(network, "a", Preprocessing(66, 64), names).checksum != same
    network.classifier.bias.data[0] += 1e-3
    assert PlainNetwork(network, "a", Preprocessing(64, 64), names).checksum != same


def test_a_classifier_with_fewer_places_than_patches_has_fewer_exits() -> None:
    preprocessing = Preprocessing(96, 96)  # a grid of one place
    classifier = tiny_classifier(0, num_patches=3, preprocessing=preprocessing).fold()
    system = TwoStageSystem(classifier, "tiny", "")
    assert system.num_exits == len(system.macs_per_exit()) == 2
    assert system.anytime_logits(noise(3, (96, 96), 0)).shape == (2, 3, CLASSES)


def test_a_network_of_other_classes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tiny gives \(2, 5\), expected 3 classes"):
        PlainNetwork(TinyNetwork(), "tiny", Preprocessing(64, 64), "abc").anytime_logits(
            noise(2, (64, 64), 0)
        )

"""The measurement of latency: what it says, never how long something took."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from anchornet_ext.evaluation import latency
from anchornet_ext.evaluation.latency import (
    LatencyReport,
    PassTime,
    PassTimes,
    PlainRun,
    measure_passes,
    measure_runs,
    speed_ups,
)
from anchornet_ext.evaluation.report_data import Latency, MeasuredTime
from anchornet_ext.evaluation.timing import interleaved_median
from anchornet_ext.inference import TwoStageClassifier
from anchornet_ext.models import AnchorNet
from anchornet_ext.policy.exit_policy import ExitPolicy
from anchornet_ext.policy.exit_table import ExitTable

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = 3


class Network(nn.Module):
    """Three classes, different for every image, and a record of the batches that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, CLASSES, 5, stride=8)
        self.seen: list[int] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        return self.convolution(images).mean(dim=(2, 3)) * 40


@pytest.fixture
def classifier() -> TwoStageClassifier:
    torch.manual_seed(0)
    return TwoStageClassifier(AnchorNet(CLASSES), Network(), Network(), num_patches=2).eval()


def photos(count: int) -> Tensor:
    return torch.randn(count, 3, 112, 112, generator=torch.Generator().manual_seed(1))


def test_passes_add_up_to_the_exits(classifier: TwoStageClassifier) -> None:
    found = measure_passes(classifier, batch_size=4, image_size=(112, 112), repeats=3)
    for one in (found.glance, found.localise, found.patch):
        assert 0 < one.low <= one.milliseconds <= one.high < math.inf
    glance, first, second = found.milliseconds_per_exit
    assert glance == found.glance.milliseconds
    assert first == pytest.approx(glance + found.localise.milliseconds + found.patch.milliseconds)
    assert second - first == pytest.approx(found.patch.milliseconds)
    assert found.setting["batch size"] == "4"
    assert found.setting["threads"] == "1"
    assert found.setting["image size"] == "112 x 112"
    # What a table takes.
    table = ExitTable(
        confidence=np.zeros((2, 3), np.float32),
        correct=np.zeros((2, 3), bool),
        milliseconds=found.milliseconds_per_exit,
    )
    assert table.costs("milliseconds")[0] == glance


def test_passes_run_full_batches_and_leave_the_classifier_alone(
    classifier: TwoStageClassifier,
) -> None:
    classifier.train()
    before = {key: value.clone() for key, value in classifier.state_dict().items()}
    measure_passes(classifier, batch_size=3, image_size=(112, 112), repeats=1, threads=2)
    assert isinstance(classifier.glance, Network)
    assert isinstance(classifier.focus, Network)
    assert set(classifier.glance.seen) == {3}
    assert set(classifier.focus.seen) == {3}
    assert classifier.training
    assert all(module.training for module in classifier.modules())
    for key, value in classifier.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert torch.get_num_threads() == 1


def test_images_of_few_places_have_fewer_exits(classifier: TwoStageClassifier) -> None:
    found = measure_passes(classifier, batch_size=1, image_size=(95, 95), repeats=1)
    assert found.num_exits == 2
    assert found.milliseconds_per_exit.shape == (2,)


def test_runs_really_leave_early(classifier: TwoStageClassifier) -> None:
    images = photos(10)
    labels = torch.arange(10) % CLASSES
    confidence = classifier.classify(images, exit_at=1).confidence[:, 0]
    half = float(confidence.median())
    policies = {"half": ExitPolicy((half, 1.0)), "glance": ExitPolicy((-1.0, 1.0))}
    network = Network()
    plain = PlainRun("plain", network, images, 1e6)
    found = measure_runs(
        classifier, images, policies, plain=plain, labels=labels, batch_size=4, repeats=2
    )
    times = {one.name: one for one in found.times}
    assert [(one.name, one.kind) for one in found.times] == [
        ("exit 1", "exit"), ("exit 2", "exit"), ("exit 3", "exit"), ("half", "point"),
        ("glance", "point"), ("half, streamed", "stream"), ("glance, streamed", "stream"),
        ("plain", "plain"),
    ]  # fmt: skip
    costs = classifier.macs_per_exit((112, 112))
    assert [times[f"exit {t}"].macs for t in (1, 2, 3)] == list(costs)
    share = float((confidence > half).double().mean())
    assert times["half"].macs == pytest.approx(share * costs[0] + (1 - share) * costs[2])
    assert times["glance"].macs == costs[0]
    for one in found.times:
        assert 0 < one.low <= one.milliseconds <= one.high < math.inf
        assert one.accuracy is not None
    expected = classifier.classify(images, policy=policies["half"]).label
    assert times["half"].accuracy == pytest.approx(float((expected == labels).double().mean()))
    assert times["glance"].accuracy == times["exit 1"].accuracy
    for name in ("half", "glance"):  # the same images leave at the same exits
        assert times[f"{name}, streamed"].macs == pytest.approx(times[name].macs)
        assert times[f"{name}, streamed"].accuracy == times[name].accuracy
    with torch.no_grad():
        right = (network(images).argmax(dim=1) == labels).double().mean()
    assert times["plain"].accuracy == pytest.approx(float(right))
    assert set(network.seen[:-1]) == {4, 2}  # 10 images in batches of 4
    assert found.reference is times["plain"]
    assert found.setting["images"] == "10"


def test_runs_without_a_plain_network_are_against_the_last_exit(
    classifier: TwoStageClassifier,
) -> None:
    found = measure_runs(
        classifier, photos(2), {"own": ExitPolicy((0.5, 0.5))}, repeats=1, exits=False
    )
    assert [one.name for one in found.times] == ["exit 3", "own", "own, streamed"]
    assert found.times[0].accuracy is None
    assert found.reference is found.times[0]
    own, streamed = speed_ups(found)
    assert (own.name, streamed.name) == ("own", "own, streamed")
    assert own.theoretical == streamed.theoretical >= 1


def test_speed_ups_are_against_the_reference() -> None:
    runs = Latency(
        (
            MeasuredTime("fast", "point", 2.0, 1.9, 2.1, 1e9, 0.7),
            MeasuredTime("plain", "plain", 6.0, 5.9, 6.1, 4e9, 0.75),
        )
    )
    (fast,) = speed_ups(runs)
    assert (fast.name, fast.theoretical, fast.realised, fast.share) == ("fast", 4.0, 3.0, 0.75)
    assert speed_ups(Latency(())) == []


def report() -> LatencyReport:
    passes = PassTimes(
        PassTime(1.0, 0.9, 1.2), PassTime(0.5, 0.4, 0.6), PassTime(2.0, 1.9, 2.1), 3, {"a": "b"}
    )
    times = (
        MeasuredTime("exit 3", "exit", 5.0, 4.5, 5.5, 3e9),
        MeasuredTime("own", "point", 2.0, 1.5, 2.5, 1e9, 0.5),
    )
    return LatencyReport(passes, Latency(times, {"device": "a machine"}))


def test_a_file_brings_everything_back(tmp_path: Path) -> None:
    for one in (report(), LatencyReport(), LatencyReport(passes=report().passes)):
        one.save(tmp_path / "latency.json")
        assert LatencyReport.load(tmp_path / "latency.json") == one
    report().save(tmp_path / "latency.json")
    values = json.loads((tmp_path / "latency.json").read_text())
    assert values["milliseconds_per_exit"] == [1.0, 3.5, 5.5]
    assert values["speed_ups"] == [
        {"name": "own", "theoretical": 3.0, "realised": 2.5, "share": 2.5 / 3}
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "Expecting"),
        (b"[]", "does not describe"),
        ({"format": "something"}, "does not describe"),
        (report().to_dict() | {"format_version": 2}, "version is 2"),
        ({**report().to_dict(), "passes": {"glance": {}}}, "not complete"),
        ({"format": latency.FORMAT, "format_version": 1}, "not complete: 'passes'"),
    ],
)
def test_a_file_that_is_none_says_so(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "latency.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(ValueError, match=rf"latency\.json: .*{message}"):
        LatencyReport.load(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels must be \(2,\) int64, got \(3,\)"),
        ({"policies": {"x": ExitPolicy((0.5,))}}, "3 exits need 2 thresholds"),
        ({"policies": {"exit 1": ExitPolicy((0.5, 0.5))}}, "two things to time have one name"),
        ({"plain": PlainRun("p", Network(), torch.zeros(3, 3, 9, 9), 1)}, "2 images, but 3 for p"),
        ({"plain": PlainRun("exit 1", Network(), photos(2), 1)}, "have one name"),
        ({"images": torch.zeros(0, 3, 112, 112)}, "no images to time"),
        ({"images": torch.zeros(2, 3, 60, 112)}, "60x112"),
    ],
)
def test_runs_that_make_no_sense_are_refused(
    classifier: TwoStageClassifier, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        measure_runs(classifier, **{"images": photos(2), **options})
    assert isinstance(classifier.glance, Network)
    assert classifier.glance.seen == []  # before any work


def test_passes_that_make_no_sense_are_refused(classifier: TwoStageClassifier) -> None:
    for options, message in (
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"threads": -1}, "threads must be at least 1"),
        ({"image_size": (90, 112)}, "90x112"),
    ):
        with pytest.raises(ValueError, match=message):
            measure_passes(classifier, **options)


def test_contenders_take_turns_and_the_median_is_theirs() -> None:
    """With a clock that the contenders turn themselves."""
    now = 0.0
    order: list[str] = []
    lasts = {"short": 1.0, "long": 3.0}

    def contender(name: str) -> None:
        nonlocal now
        order.append(name)
        # Every fifth run is disturbed, which a median does not mind.
        now += lasts[name] * (10 if order.count(name) % 5 == 0 else 1)

    found = interleaved_median(
        {name: lambda name=name: contender(name) for name in lasts},
        repeats=9,
        warmup=0,
        clock=lambda: now,
        before=lambda: None,
    )
    assert (found["short"].median, found["long"].median) == (1.0, 3.0)
    assert found["short"].low == 1.0
    rounds = [set(order[i : i + 2]) for i in range(0, len(order), 2)]
    assert rounds == [{"short", "long"}] * 9
    assert len({order[i] for i in range(0, len(order), 2)}) == 2  # not always the same one first


def test_a_single_thread_is_timed_by_its_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert latency.clock_for(cpu) is time.thread_time
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert latency.clock_for(cpu) is time.perf_counter

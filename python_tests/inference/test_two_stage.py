"""The model's construction and its checks."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from dataclasses import asdict
from typing import Any

import pytest
import torch
from tiny_networks import CLASSES, TinyNetwork, noise, tiny_classifier
from torch import nn

from anchornet_ext.inference import TwoStageClassifier, two_stage
from anchornet_ext.policy.exit_policy import ExitPolicy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_patches": 0}, "num_patches must be at least 1, got 0"),
        ({"glance_size": 0}, "glance_size must be at least 1 pixel, got 0"),
        ({"criterion": "entropy"}, "got 'entropy'"),
        ({"iou_threshold": (0.3, 0.3)}, "2 entries for 4 patches"),
        ({"class_names": ("a", "b")}, "2 class names for networks of 5 classes"),
        ({"thresholds": (0.5, 0.5, 0.5)}, "need 4 thresholds, got 3"),
        ({"thresholds": (0.5, 0.5, math.nan, 0.5)}, "NaN"),
        ({"policy": ExitPolicy((0.5,))}, "need 4 thresholds, got 1"),
        ({"thresholds": (0.5,) * 4, "policy": ExitPolicy((0.5,) * 4)}, "not both"),
    ],
)
def test_constructor_refuses(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_classifier(**options)


def test_glance_is_the_whole_image_with_its_corners_kept() -> None:
    model = tiny_classifier(glance_size=33)
    images = noise(2, (101, 120), seed=1)
    small = model.glance_input(images)
    assert small.shape == (2, 3, 33, 33)
    # Aligned corners: the corner pixels of both pictures are the same.
    for row in (0, -1):
        for column in (0, -1):
            torch.testing.assert_close(small[..., row, column], images[..., row, column])
    assert model.glance_input(images[:0]).shape == (0, 3, 33, 33)


def test_cost_of_each_exit_counts_what_runs() -> None:
    model = tiny_classifier(num_patches=3)

    def tiny(side: int) -> int:
        first, second = (side - 5) // 4 + 1, ((side - 5) // 4 + 1 - 5) // 4 + 1
        return first**2 * 8 * 75 + second**2 * 16 * 200 + 16 * CLASSES

    glance, *later = model.macs_per_exit((128, 128))
    assert glance == tiny(95)
    assert [b - a for a, b in itertools.pairwise(later)] == [tiny(95)] * 2
    anchor = later[0] - glance - tiny(95)
    assert anchor > 0
    folded = model.fold().macs_per_exit((128, 128))
    assert folded[0] == glance
    assert 0 < folded[1] - glance - tiny(95) < anchor


def test_cost_follows_every_change_of_the_networks() -> None:
    """A cost that was counted for another network is not used for the one that runs."""
    model = tiny_classifier()
    before = model.macs_per_exit((128, 128))
    model.focus = nn.Sequential(nn.Conv2d(3, CLASSES, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    patch = 91 * 91 * CLASSES * 75
    swapped = model.macs_per_exit((128, 128))
    assert swapped[0] == before[0]
    assert [b - a for a, b in itertools.pairwise(swapped[1:])] == [patch] * 3
    model.glance_size = 40
    assert model.macs_per_exit((128, 128))[0] < swapped[0]
    model.num_patches = 2
    assert len(model.macs_per_exit((128, 128))) == 3
    # Also inside of a network that stays.
    model.focus[0] = nn.Conv2d(3, CLASSES, 3)
    assert model.macs_per_exit((128, 128))[2] - model.macs_per_exit((128, 128))[1] == (
        93 * 93 * CLASSES * 27
    )
    # A copy counts its own networks.
    twin = copy.deepcopy(model)
    twin.focus = TinyNetwork()
    assert twin.macs_per_exit((128, 128)) != model.macs_per_exit((128, 128))


def test_what_classify_worked_out_is_not_used_after_a_change() -> None:
    """Every setting may change between two calls, and the second one follows."""
    images = noise(5, (112, 120), seed=2)

    def agrees(model: TwoStageClassifier, **options: Any) -> None:
        fresh = tiny_classifier()
        fresh.load_state_dict(model.state_dict())
        for name in ("num_patches", "iou_threshold", "glance_size", "criterion", "policy"):
            setattr(fresh, name, getattr(model, name))
        for _ in range(2):  # the second time as it was worked out the first time
            got, expected = model.classify(images, **options), fresh.classify(images, **options)
            for name, value in asdict(expected).items():
                if isinstance(value, torch.Tensor):
                    torch.testing.assert_close(getattr(got, name), value, equal_nan=True, msg=name)
                else:
                    assert getattr(got, name) == value, name

    model = tiny_classifier()
    agrees(model)
    model.policy = ExitPolicy((0.3,) * 4, answer="surest")
    agrees(model)
    agrees(model, exit_at=2)
    agrees(model, exit_at=3)
    agrees(model, thresholds=[0.3, 0.4, 0.5, 0.6])
    agrees(model, thresholds=(0.2, 0.4, 0.5, 0.6))
    agrees(model, policy=ExitPolicy((0.2,) * 4, (2.0,) * 5))
    changing = torch.tensor([0.1, 0.2, 0.3, 0.4])
    agrees(model, thresholds=changing)
    agrees(model, thresholds=changing.fill_(0.9))
    model.criterion = "probabilities"
    agrees(model)
    model.iou_threshold = [0.1, 0.2, 0.3, 0.4]
    agrees(model)
    assert isinstance(model.iou_threshold, list)
    model.iou_threshold[1] = 0.9
    agrees(model)
    model.glance_size = 50
    agrees(model)
    model.policy = None
    model.iou_threshold, model.num_patches = 0.3, 2
    agrees(model)


def test_a_copy_classifies_with_its_own_networks() -> None:
    model = tiny_classifier()
    images = noise(3, (112, 120), seed=2)
    before = model.classify(images).probabilities
    twins = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for parameter in model.parameters():
        parameter.data = torch.zeros_like(parameter)
    for twin in twins:
        torch.testing.assert_close(twin.classify(images).probabilities, before)
        # So does one that is given another network after that.
        twin.focus = TinyNetwork()
        expected = twin.anytime_logits(images)[-1].softmax(dim=1)
        torch.testing.assert_close(twin.classify(images).probabilities, expected)


def test_cost_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_classifier()
    counted: list[object] = []
    real = two_stage.count_macs

    def counting(module: nn.Module, size: tuple[int, int, int]) -> int:
        counted.append(module)
        return real(module, size)

    monkeypatch.setattr(two_stage, "count_macs", counting)
    for _ in range(3):
        model.macs_per_exit((128, 128))
    assert counted == [model.glance, model.anchor, model.focus]
    model.macs_per_exit((128, 136))
    assert counted[3:] == [model.anchor]


def test_the_policy_and_its_thresholds_can_be_set() -> None:
    model = tiny_classifier()
    assert model.policy is None
    assert model.thresholds is None
    model.thresholds = (0.5, 0.6, math.inf, 0.8)
    assert model.policy == ExitPolicy((0.5, 0.6, 1.0, 0.8))
    model.policy = ExitPolicy((0.1,) * 4, (2.0,) * 5, "surest")
    assert model.thresholds == (0.1,) * 4
    assert model.fold().policy == model.policy
    assert "temperatures=(2.0, 2.0, 2.0, 2.0, 2.0), answer='surest'" in repr(model)
    with pytest.raises(ValueError, match="need 4 thresholds, got 1"):
        model.policy = ExitPolicy((0.5,))
    with pytest.raises(ValueError, match="need 4 thresholds, got 1"):
        model.thresholds = (0.5,)
    assert model.thresholds == (0.1,) * 4
    model.thresholds = None
    assert model.policy is None


def test_forward_sums_the_sequence_and_trains_the_networks() -> None:
    model = tiny_classifier()
    images = noise(3, (110, 110), seed=2)
    logits = model(images)
    torch.testing.assert_close(logits, model.anytime_logits(images)[-1])
    logits.sum().backward()
    for part in (model.glance, model.focus):
        assert all(p.grad is not None for p in part.parameters())


def test_repr_shows_the_settings() -> None:
    assert "thresholds=(0.5, 0.6, 0.7, 0.8)" in repr(
        tiny_classifier(thresholds=(0.5, 0.6, 0.7, 0.8))
    )

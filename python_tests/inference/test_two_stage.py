"""The model's construction and its checks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from tiny_networks import CLASSES, noise, tiny_classifier


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

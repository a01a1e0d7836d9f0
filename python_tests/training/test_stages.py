"""What each stage's network gets to see."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from anchornet_ext import _extension, reference
from anchornet_ext.data.transforms import Preprocessing
from anchornet_ext.models import AnchorNet
from anchornet_ext.models.localise import random_places
from anchornet_ext.training.config import StageConfig
from anchornet_ext.training.stages import FocusTask, GlanceTask
from anchornet_ext.training.task import Task

SIDE = 119  # a map of 4 x 4 places
PREPROCESSING = Preprocessing(resize_size=SIDE, crop_size=SIDE)


def photos(count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    images = torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    return images.contiguous(memory_format=torch.channels_last)


def make(kind: type[Task], size: int) -> Task:
    config = StageConfig(size=size)
    return kind("stage", nn.Identity(), config, None, PREPROCESSING, 5)  # type: ignore[arg-type]


def test_glance_sees_what_inference_resizes() -> None:
    images, labels = photos(2), torch.tensor([3, 1])
    inputs, same = make(GlanceTask, 40).inputs(images, labels)
    normalised = PREPROCESSING.normalise(images)  # inference normalises first
    expected = nn.functional.interpolate(normalised, (40, 40), mode="bicubic", align_corners=True)
    torch.testing.assert_close(inputs, expected, rtol=0, atol=1e-4)
    assert same is labels


@pytest.mark.skipif(not _extension.available(), reason="the native library is not built")
@pytest.mark.parametrize("autocast", [False, True])
def test_focus_sees_the_localised_patches(autocast: bool) -> None:
    torch.manual_seed(0)
    anchor = AnchorNet(5).eval()
    task = make(FocusTask, 95)
    assert isinstance(task, FocusTask)
    task.anchor, task.num_patches, task.iou_threshold = anchor.fold(), 3, 0.7
    images, labels = photos(2), torch.tensor([3, 1])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        inputs, repeated = task.inputs(images, labels)
    assert repeated.tolist() == [3, 3, 3, 1, 1, 1]
    assert (inputs.shape, inputs.dtype) == ((6, 3, 95, 95), torch.float32)
    with torch.no_grad():
        normalised = PREPROCESSING.normalise(images)
        features = anchor.features(normalised)
        predicted = anchor.logits(features).argmax(1)
        cam = reference.class_activation_map(features, anchor.class_weight, predicted)
    _, top_left, _ = reference.select_patches(cam, 3, 95, 8, 0.7)
    for b in range(2):
        for rank, (r, c) in enumerate(top_left[b].tolist()):
            expected = normalised[b, :, r : r + 95, c : c + 95]
            torch.testing.assert_close(inputs[3 * b + rank], expected, rtol=0, atol=1e-5)


@pytest.mark.skipif(not _extension.available(), reason="the native library is not built")
def test_without_an_anchor_focus_sees_random_patches() -> None:
    task = make(FocusTask, 95)
    assert isinstance(task, FocusTask)
    task.anchor, task.num_patches = None, 40
    images, labels = photos(2), torch.tensor([3, 1])
    torch.manual_seed(0)
    inputs, repeated = task.inputs(images, labels)
    assert repeated.tolist() == [3] * 40 + [1] * 40
    torch.manual_seed(0)
    places = random_places(2, 40, (SIDE, SIDE), 95).flatten(0, 1)
    assert places.amin() == 0  # 25 positions an axis: both ends come up in 160 draws
    assert places.amax() == SIDE - 95
    normalised = PREPROCESSING.normalise(images)
    for m, (r, c) in enumerate(places.tolist()):
        expected = normalised[m // 40, :, r : r + 95, c : c + 95]
        torch.testing.assert_close(inputs[m], expected, rtol=0, atol=1e-5)


def test_focus_is_judged_by_the_sum_of_a_photos_patches() -> None:
    task = make(FocusTask, 95)
    assert isinstance(task, FocusTask)
    task.num_patches = 2
    output = torch.zeros(4, 5)
    output[0, 1], output[1, 2] = 1.0, 3.0  # photo 0: the patches disagree, class 2 is surer
    output[2, 4], output[3, 4] = 1.0, 1.0
    correct, count = task.count_correct(output, torch.tensor([2, 2, 0, 0]))
    assert (int(correct), count) == (1, 2)
    correct, count = task.count_correct_in_training(output, torch.tensor([2, 2, 0, 0]))
    assert (int(correct), count) == (1, 4)

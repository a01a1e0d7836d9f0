"""Patch policies: where they look, and what their logits add up to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from benchmark_scripts import load_script
from tiny_networks import CLASSES, noise, tiny_classifier
from torch import Tensor

from anchornet_ext.inference.policies import CENTRE_PATTERN, POLICIES, patch_locations
from anchornet_ext.ops import gather_patches


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("size", [(95, 95), (112, 131)])
def test_patches_lie_within_the_image(policy: Any, size: tuple[int, int]) -> None:
    model = tiny_classifier()
    top_left = patch_locations(model, noise(3, size, seed=0), policy)
    assert top_left.shape == (3, 1 if size == (95, 95) else 4, 2)
    assert top_left.dtype == torch.int64
    assert (top_left >= 0).all()
    assert (top_left + 95 <= torch.tensor(size)).all()


def test_random_reaches_every_position_equally_and_repeats_with_its_seed() -> None:
    model = tiny_classifier()
    images = torch.zeros(3000, 3, 97, 98)

    def draw(seed: int) -> Tensor:
        return patch_locations(model, images, "random", torch.Generator().manual_seed(seed), 4)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    cells, counts = draw(1).flatten(0, 1).unique(dim=0, return_counts=True)
    assert cells.tolist() == [[row, column] for row in range(3) for column in range(4)]
    # 12000 draws into 12 cells: 1000 each with a standard deviation of 30.
    assert (counts - 1000).abs().max() < 150


def test_centre_begins_in_the_middle_and_is_the_same_for_all() -> None:
    model = tiny_classifier(num_patches=9)
    top_left = patch_locations(model, torch.zeros(2, 3, 224, 195), "centre")
    assert top_left[0, :5].tolist() == [[64, 50], [0, 0], [129, 100], [0, 100], [129, 0]]
    assert torch.equal(top_left[0], top_left[1])
    assert len(top_left[0].unique(dim=0)) == 9 == len(CENTRE_PATTERN)
    with pytest.raises(ValueError, match="has 9 patches, asked for 10"):
        patch_locations(model, torch.zeros(1, 3, 224, 224), "centre", num_patches=10)


def test_more_patches_than_the_model_takes() -> None:
    """Five patches of the focus network alone, as in Table 3, from a model with four."""
    model = tiny_classifier(iou_threshold=(0.5, 0.4, 0.3, 0.2))
    images = noise(2, (120, 120), seed=2)
    five = patch_locations(model, images, "anchornet", num_patches=5)
    assert five.shape == (2, 5, 2)
    assert torch.equal(five[:, :4], patch_locations(model, images))


def test_unknown_policy() -> None:
    with pytest.raises(ValueError, match="got 'best'"):
        patch_locations(tiny_classifier(), noise(1, (95, 95), 0), "best")  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", POLICIES)
def test_anytime_logits_are_sums_of_the_inputs(policy: Any) -> None:
    model = tiny_classifier(dtype=torch.float64)
    images = noise(3, (120, 104), 3, torch.float64)
    got = model.anytime_logits(images, policy, torch.Generator().manual_seed(0))
    assert got.shape == (5, 3, CLASSES)
    places = patch_locations(model, images, policy, torch.Generator().manual_seed(0))
    for b in range(3):
        total = model.glance(model.glance_input(images[b : b + 1]))[0]
        torch.testing.assert_close(got[0, b], total)
        for step, (row, column) in enumerate(places[b].tolist(), start=1):
            patch = images[b : b + 1, :, row : row + 95, column : column + 95]
            total = total + model.focus(patch)[0]
            torch.testing.assert_close(got[step, b], total)
    assert not got.requires_grad
    assert model.anytime_logits(images[:0], policy).shape == (5, 0, CLASSES)


def test_anytime_is_what_classify_decides_on() -> None:
    model = tiny_classifier(dtype=torch.float64)
    images = noise(4, (120, 104), 4, torch.float64)
    confidence = model.anytime_logits(images).softmax(dim=2).amax(dim=2)  # (T, B)
    torch.testing.assert_close(model.classify(images, exit_at=5).confidence.T, confidence)


def test_benchmark_counts_what_the_pipeline_predicts() -> None:
    """With the labels that the pipeline gives at exit 3, it is always right with 3 inputs."""
    benchmark = load_script("patch_policies")
    model = tiny_classifier(dtype=torch.float64)
    images = noise(6, (120, 104), 5, torch.float64)
    exits = [model.classify(images, exit_at=step).label for step in range(1, 6)]
    labels = exits[2]
    contenders = [
        benchmark.Contender("AnchorNet", "anchornet", model.focus),
        benchmark.Contender("random", "random", model.focus, 0),
        benchmark.Contender("random", "random", model.focus, 1),
    ]
    batches = iter([(images[:4], labels[:4]), (images[4:], labels[4:])])
    correct = benchmark.measure(model, contenders, batches, 5, 2)
    pipeline = correct["glance + patches"]
    assert pipeline[0].tolist() == [int((label == labels).sum()) for label in exits]
    assert int(pipeline[0, 2]) == 6
    # Input 1 is the glance for everybody.
    assert pipeline[:, 0].unique().numel() == 1
    # The first patch alone is the first of the patches.
    first = patch_locations(model, images, num_patches=1)
    patches = gather_patches(images, first, 95)
    alone = int((model.focus(patches).argmax(dim=1) == labels).sum())
    assert int(correct["patches only"][0, 0]) == alone

    table = benchmark.summarise(contenders, correct, 6)["glance + patches"]
    assert table["AnchorNet"]["mean"][2] == 100
    assert table["AnchorNet"]["stdev"] == [0.0] * 5
    runs = table["random"]["runs"]
    assert len(runs) == 2
    assert table["random"]["mean"] == pytest.approx(
        [(one + other) / 2 for one, other in zip(*runs, strict=True)]
    )
    assert benchmark.spread(10, 5) == [0, 2, 4, 6, 8]

"""Several patches in a pass: as many as asked for, no more work hidden, and the best sizes."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_networks import noise, tiny_classifier
from torch import Tensor, nn

from anchornet_ext.inference.lookahead import FULL_PASS, best_lookahead, checked_lookahead
from anchornet_ext.policy.exit_policy import ExitPolicy


def watched(model: Any) -> list[int]:
    """The sizes of the focus network's passes, as they come."""
    sizes: list[int] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sizes.append(len(inputs[0]))

    model.focus.register_forward_pre_hook(note)
    return sizes


@pytest.mark.parametrize(
    ("lookahead", "passes"),
    [("free", [2, 2, 2, 2]), (1, [2, 2, 2, 2]), (4, [8]), ((1, 3), [2, 6]), ((2, 1), [4, 2, 2])],
)
def test_passes_are_as_asked_for(lookahead: Any, passes: list[int]) -> None:
    model = tiny_classifier()
    sizes = watched(model)
    got = model.classify(noise(2, (112, 112), seed=1), (0.999999,) * 4, lookahead=lookahead)
    assert got.exit_step.tolist() == [5, 5]
    assert sizes == passes


def test_what_every_image_needs_is_free() -> None:
    model = tiny_classifier()
    sizes = watched(model)

    def run(count: int, **rules: Any) -> list[int]:
        sizes.clear()
        model.classify(noise(count, (104, 96), seed=1), lookahead="free", **rules)
        return list(sizes)

    assert run(1, exit_at=3) == [2]
    assert run(FULL_PASS // 2, exit_at=3) == [FULL_PASS]
    assert run(FULL_PASS // 2 + 1, exit_at=3) == [FULL_PASS // 2 + 1] * 2
    assert run(3, thresholds=(1.0, 0.999999, 2.0, 2.0)) == [3, 3]  # there are two places only
    sizes.clear()
    images = noise(3, (112, 112), seed=1)
    model.classify(images, (1.0, 1.0, 0.999999, 2.0), lookahead="free")
    assert sizes == [6, 6]
    sizes.clear()
    tiny_policy = ExitPolicy.never(5)
    model.classify(images, policy=tiny_policy)
    model.classify(images, policy=tiny_policy, lookahead="free")
    assert sizes == [3, 3, 3, 3, 12]


def test_what_is_computed_in_vain_is_counted() -> None:
    model = tiny_classifier(1)
    images = noise(24, (120, 128), seed=3)
    confidence = model.classify(images, exit_at=5).confidence[:, :4]
    thresholds = confidence.quantile(0.6, dim=0).tolist()
    plain = model.classify(images, thresholds)
    sizes = watched(model)
    got = model.classify(images, thresholds, lookahead=(2, 2))
    assert torch.equal(got.exit_step, plain.exit_step)
    assert torch.equal(got.label, plain.label)
    torch.testing.assert_close(got.confidence, plain.confidence, equal_nan=True)
    costs = model.macs_per_exit((120, 128))
    end = {1: 1, 2: 3, 3: 3, 4: 5, 5: 5}
    assert got.macs.tolist() == [costs[end[step] - 1] for step in got.exit_step.tolist()]
    counts = Counter(got.exit_step.tolist())
    assert set(counts) >= {1, 2, 3}
    assert sum(sizes) == sum((end[step] - 1) * count for step, count in counts.items())


@pytest.mark.parametrize("wrong", [0, -1, (), (1, 0), 1.5, (2, 1.5), None, "all"])
def test_other_sizes_are_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="lookahead must be patches in a pass"):
        checked_lookahead(wrong)
    with pytest.raises(ValueError, match="lookahead must be patches in a pass"):
        tiny_classifier().classify(noise(1, (104, 104), seed=1), lookahead=wrong)


@settings(max_examples=60, deadline=None)
@given(
    seconds=st.lists(st.floats(0.001, 10), min_size=4, max_size=4),
    shares=st.lists(st.floats(0, 1), min_size=2, max_size=6),
)
def test_no_other_sizes_take_less(seconds: list[float], shares: list[float]) -> None:
    times = dict(enumerate(seconds, start=1))
    patches = len(shares) - 1

    def expected(sizes: tuple[int, ...]) -> float:
        begins = itertools.accumulate(sizes[:-1], initial=0)
        return sum(
            times[size] * sum(shares[begin + 1 :])
            for size, begin in zip(sizes, begins, strict=True)
        )

    every = [
        sizes
        for count in range(1, patches + 1)
        for sizes in itertools.product(times, repeat=count)
        if sum(sizes) == patches
    ]
    best = best_lookahead(times, shares)
    assert sum(best) == patches
    assert expected(tuple(best)) == pytest.approx(min(map(expected, every)))


def test_best_sizes_need_times_and_exits() -> None:
    with pytest.raises(ValueError, match="that of 1 patch among them"):
        best_lookahead({2: 1.0}, (0.5, 0.5))
    with pytest.raises(ValueError, match="none negative"):
        best_lookahead({1: 1.0}, (0.5, -0.5))
    with pytest.raises(ValueError, match="at least 2 exits, got 1"):
        best_lookahead({1: 1.0}, (1.0,))
    assert best_lookahead({1: 1.0, 4: 1.4}, (0.0, 0.9, 0.0, 0.0, 0.1)) == [1, 1, 1, 1]
    assert best_lookahead({1: 1.0, 4: 1.1}, (0.0, 0.0, 0.0, 0.0, 1.0)) == [4]

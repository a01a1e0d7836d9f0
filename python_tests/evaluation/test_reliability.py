"""The reliability diagram's numbers."""

from __future__ import annotations

import numpy as np
import pytest

from anchornet_ext.evaluation.reliability import reliability


def test_a_case_by_hand() -> None:
    confidence = np.array([0.0, 0.2, 0.9, 1.0], np.float32)
    correct = np.array([False, True, True, False])
    found = reliability(confidence, correct, 2, bins=2)
    assert found.exit_step == 2
    assert found.count.tolist() == [2, 2]
    assert found.confidence == pytest.approx([0.1, 0.95])
    assert found.accuracy.value == pytest.approx([0.5, 0.5])
    assert found.error == pytest.approx((2 * 0.4 + 2 * 0.45) / 4)
    assert found.bias == pytest.approx(2.1 / 4 - 0.5)


def test_confidences_at_the_bins_edges_are_counted_once() -> None:
    confidence = np.linspace(0, 1, 16, dtype=np.float32)
    found = reliability(confidence, np.ones(16, bool), 1)
    assert found.count.sum() == 16
    assert found.count[-1] >= 1


def test_empty_bins_have_no_accuracy() -> None:
    found = reliability(np.array([0.5], np.float32), np.array([True]), 1, bins=3)
    assert np.isnan(found.accuracy.value).tolist() == [True, False, True]
    assert np.isfinite([found.error, found.chance_error, found.bias]).all()


def test_exact_confidences_show_the_error_of_chance() -> None:
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(40):
        confidence = rng.random(600).astype(np.float32)
        errors.append(reliability(confidence, rng.random(600) < confidence, 1))
    mean = np.mean([one.error for one in errors])
    assert mean == pytest.approx(np.mean([one.chance_error for one in errors]), rel=0.1)


def test_overconfidence_shows() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 5000).astype(np.float32)
    found = reliability(confidence, rng.random(5000) < confidence - 0.2, 1)
    assert found.bias == pytest.approx(0.2, abs=0.02)
    assert found.error == pytest.approx(0.2, abs=0.02)
    assert found.chance_error < 0.05


@pytest.mark.parametrize(
    ("confidence", "correct"),
    [
        (np.empty(0), np.empty(0, bool)),
        (np.ones((2, 2)), np.ones((2, 2), bool)),
        (np.ones(2), np.ones(3, bool)),
        (np.array([1.1]), np.ones(1, bool)),
        (np.array([np.nan]), np.ones(1, bool)),
    ],
)
def test_bad_input_is_refused(confidence: np.ndarray, correct: np.ndarray) -> None:
    with pytest.raises(ValueError):
        reliability(confidence.astype(np.float32), correct, 1)

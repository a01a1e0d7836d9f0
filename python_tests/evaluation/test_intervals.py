"""Intervals hold the truth as often as they say, and paired ones are narrow."""

from __future__ import annotations

import numpy as np
import pytest

from anchornet_ext.evaluation.intervals import paired_difference, share


def test_wilson_interval_of_known_cases() -> None:
    # R: binom::binom.confint(8, 10, methods = "wilson"), and the closed form of 0 and all hits.
    found = share(8, 10)
    assert float(found.value) == 0.8
    assert float(found.low) == pytest.approx(0.4901625, abs=1e-6)
    assert float(found.high) == pytest.approx(0.9433178, abs=1e-6)
    square = 1.959963984540054**2
    assert float(share(0, 10).low) == 0
    assert float(share(0, 10).high) == pytest.approx(square / (10 + square))
    assert float(share(10, 10).high) == 1


@pytest.mark.parametrize(("rate", "count"), [(0.03, 60), (0.5, 40), (0.97, 200)])
def test_wilson_interval_holds_the_truth(rate: float, count: int) -> None:
    hits = np.random.default_rng(0).binomial(count, rate, 4000)
    found = share(hits, count)
    held = ((found.low <= rate) & (rate <= found.high)).mean()
    assert 0.92 < held < 0.985


def test_share_refuses_what_is_no_share() -> None:
    for hits, count in ((1, 0), (-1, 5), (6, 5), (float("nan"), 5)):
        with pytest.raises(ValueError):
            share(hits, count)


def test_paired_difference_of_known_cases() -> None:
    before = np.array([1, 1, 0, 0, 1, 0, 1, 1, 0, 1], bool)
    after = np.array([1, 1, 1, 1, 1, 0, 1, 0, 1, 1], bool)
    found = paired_difference(before, after)
    assert float(found.value) == pytest.approx(0.2)
    difference = after.astype(float) - before
    reach = 1.959963984540054 * difference.std(ddof=1) / np.sqrt(10)
    assert float(found.high - found.value) == pytest.approx(reach)
    assert float(found.value - found.low) == pytest.approx(reach)


def test_paired_difference_is_narrow_where_images_agree() -> None:
    rng = np.random.default_rng(0)
    before = rng.random(10_000) < 0.7
    after = before.copy()
    after[np.flatnonzero(~before)[:100]] = True
    found = paired_difference(before, after)
    assert float(found.low) > 0
    separate = share([before.sum(), after.sum()], len(before))
    assert float(separate.high[0]) > float(separate.low[1])  # unpaired, nothing could be said


def test_paired_difference_is_never_certain() -> None:
    same = np.ones(50, bool)
    found = paired_difference(same, same)
    assert float(found.low) < 0 < float(found.high)
    alone = paired_difference([True], [False])
    assert (float(alone.low), float(alone.high)) == (-1, 1)


def test_paired_difference_refuses_other_images() -> None:
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        paired_difference([1, 0], [1, 0, 1])
    with pytest.raises(ValueError):
        paired_difference([], [])

"""The sentences say what the numbers say, also where the system loses."""

from __future__ import annotations

import numpy as np
import pytest
from report_cases import curve_of, graded_table, table_of_correct

from anchornet_ext.evaluation import sentences, units
from anchornet_ext.evaluation.curves import anytime, operating_point
from anchornet_ext.evaluation.reliability import reliability
from anchornet_ext.evaluation.report_data import Latency, MeasuredTime, PlainNetwork
from anchornet_ext.policy.exit_policy import ExitPolicy


def steps(*right: int, images: int = 1000) -> np.ndarray:
    """(N, T) where the first `right[t]` images are right at exit t."""
    return np.arange(images)[:, None] < np.array(right)


def test_steps_that_help_hurt_or_do_neither() -> None:
    said = " ".join(sentences.about_anytime(anytime(table_of_correct(steps(600, 700, 650, 651)))))
    assert "rises with step 2 (+10.00 points)" in said
    assert "falls with step 3 (-5.00 points)" in said
    assert "step 4 (+0.10 points) is no more than chance" in said
    assert "The highest accuracy is that of exit 2" in said


def test_the_last_exit_is_not_praised_for_being_last() -> None:
    said = " ".join(sentences.about_anytime(anytime(table_of_correct(steps(600, 700)))))
    assert "highest accuracy" not in said
    assert "falls" not in said


def test_saving() -> None:
    exits = anytime(table_of_correct(steps(600, 800), cost=np.array([1e9, 4e9])))
    said = sentences.about_saving(exits, curve_of([1, 2, 4], [0.6, 0.8, 0.85]))
    assert "the same accuracy takes 2.00 GMACs" in said
    assert "instead of 4.00 GMACs: 2.0 times less" in said


def test_no_saving() -> None:
    exits = anytime(table_of_correct(steps(600, 800), cost=np.array([1e9, 4e9])))
    short = sentences.about_saving(exits, curve_of([1, 2, 3], [0.6, 0.7, 0.75]))
    assert "do not reach that accuracy: the best is 75.0 %, 5.0 points less" in short
    assert "75 % of the cost" in short
    nothing = sentences.about_saving(exits, curve_of([1, 4], [0.6, 0.8]))
    assert "saves nothing" in nothing
    worse = anytime(table_of_correct(steps(800, 700), cost=np.array([1e9, 4e9])))
    first = sentences.about_saving(worse, curve_of([1, 4], [0.8, 0.81]))
    assert "The first step alone is as accurate as all 2, for 1.00 GMACs" in first


@pytest.mark.parametrize(
    ("right", "gmacs", "expected"),
    [
        (9500, 4.0, "15.0 points more than the best of this system (at 2.00 GMACs). No choice"),
        (6000, 4.0, "20.0 points less than the best of this system (at 2.00 GMACs)"),
        (8000, 4.0, "does not differ from it by more than chance"),
        (6500, 8.0, "has that accuracy from 1.25 GMACs on, 6.4 times less"),
        (6500, 1.1, "needs 1.25 GMACs for that accuracy, which is more"),
    ],
)
def test_the_plain_network_may_win(right: int, gmacs: float, expected: str) -> None:
    exits = anytime(table_of_correct(steps(6000, 7900, images=10_000), cost=np.array([1e9, 4e9])))
    curve = curve_of([1, 2], [0.6, 0.8], images=10_000)
    plain = PlainNetwork("plain", right, 10_000, gmacs * 1e9)
    assert expected in sentences.about_plain(plain, exits, curve)


def test_methods_win_lose_or_draw() -> None:
    rng = np.random.default_rng(0)
    score = rng.random(1000).astype(np.float32) * 0.5

    def said(change: float) -> str:
        other = curve_of([1, 2], [0.6, 0.8], image_score=score, method="geometric")
        first = curve_of([1, 2], [0.6, 0.8], image_score=score + np.float32(change))
        (text,) = sentences.about_methods([first, other])
        return text

    assert "the searched thresholds are right more often than the geometric rule" in said(0.02)
    assert "are right less often than" in said(-0.02)
    assert "do not differ by more than chance: 0.00 points" in said(0)


def test_curves_of_other_budgets_are_not_compared() -> None:
    assert sentences.about_methods([curve_of([1, 2], [0.6, 0.8]), curve_of([1, 3], [0, 1])]) == []


def test_points_fitted_on_their_own_images_are_said_to_flatter() -> None:
    table = graded_table(200, 3)
    exits = anytime(table)
    policy = ExitPolicy((0.5, 0.5))
    flattering = operating_point(table, "own", policy, held_out=False)
    honest = operating_point(table, "own", policy, held_out=True)
    assert "flatters" in " ".join(sentences.about_points([flattering], exits))
    assert "flatters" not in " ".join(sentences.about_points([honest], exits))


def test_speed_on_the_clock() -> None:
    plain = MeasuredTime("plain", "plain", 10, 9, 11, 4e9)
    half = MeasuredTime("half", "point", 4, 4, 4, 1e9)
    slow = MeasuredTime("slow", "point", 20, 19, 21, 2e9)
    filled = MeasuredTime("half, streamed", "stream", 3.5, 3, 4, 1e9)
    first, second = sentences.about_speed(Latency([half, plain, slow, filled]))
    assert "4.00 ms with half" in first
    assert "2.50 times as fast, where the multiply-adds promise 4.00 (62 % of it" in first
    assert first.endswith("As a stream of full batches it takes 3.50 ms.")
    assert "slower (0.50 times the speed)" in second
    assert "stream" not in second


def test_real_runs_are_told_from_added_times() -> None:
    table = graded_table(200, 2, milliseconds=np.array([1.0, 3.0]))
    point = operating_point(table, "chosen", ExitPolicy((-1.0,)))
    times = Latency([MeasuredTime("chosen", "point", 1.7, 1.6, 1.8, 1e9)])
    said = " ".join(sentences.about_added_times(anytime(table), [point], times))
    assert "1.70 ms with chosen, whose steps add up to 1.00 ms" in said
    untimed = " ".join(sentences.about_added_times(anytime(table), [point], None))
    assert "add up the times of the steps" in untimed
    assert "real runs" not in untimed
    assert sentences.about_added_times(anytime(graded_table(200, 2)), [point], times) == []


def test_without_a_plain_network_the_last_exit_is_the_reference() -> None:
    exits = [MeasuredTime(f"exit {t}", "exit", t, t, t, t * 1e9) for t in (1, 3, 2)]
    reference = Latency(exits).reference
    assert reference is not None
    assert reference.name == "exit 3"
    assert Latency([]).reference is None


def test_reliability_verdicts() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.4, 0.8, 4000).astype(np.float32)
    draws = rng.random(4000)
    exits = [
        reliability(confidence, draws < confidence, 1),
        reliability(confidence, draws < confidence - 0.2, 2),
        reliability(confidence, draws < confidence + 0.2, 3),
    ]
    said = sentences.about_reliability(exits)
    assert "exit 1, confidences can be taken at their word" in said[0]
    assert "exit 2, the system is surer than it is right" in said[1]
    assert "exit 3, the system is right more often than it is sure" in said[2]
    (together,) = sentences.about_reliability([exits[1], exits[1]])
    assert "At every exit, the system is surer" in together


def test_few_images_are_said_to_be_few() -> None:
    few, many = (anytime(graded_table(count, 2)) for count in (50, 5000))
    assert "With only 50 images" in " ".join(sentences.about_result(few, None, [], None))
    assert "With only" not in " ".join(sentences.about_result(many, None, [], None))


def test_numbers_as_words() -> None:
    assert units.macs(1.25e9) == "1.25 GMACs"
    assert units.macs(74.3e6) == "74.3 MMACs"
    assert units.macs(None) == "not known"
    assert [units.three_digits(value) for value in (0, 0.0125, 1.256, 12.56, 1256)] == [
        "0", "0.0125", "1.26", "12.6", "1256",
    ]  # fmt: skip
    assert units.percent(0.70378, 50_000) == "70.38 %"
    assert units.percent(0.70378, 400) == "70.4 %"
    assert units.plural(1, "image") == "1 image"
    assert units.plural(50_000, "image") == "50\u202f000 images"
    assert sentences.joined(["a", "b", "c"]) == "a, b and c"
    assert sentences.thresholds_in_words((-1.0, 0.5, 1.0)) == "always, 0.500, never"
    assert sentences.signed(-0.001) == "0.00"

"""Figures show the numbers they are given, for every kind of system, and leave no global state."""

from __future__ import annotations

import sys
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_cases import curve_of, graded_table

from anchornet_ext.evaluation import figures, theme
from anchornet_ext.evaluation.curves import anytime, operating_point
from anchornet_ext.evaluation.reliability import reliability
from anchornet_ext.evaluation.report_data import MeasuredTime, PlainNetwork
from anchornet_ext.policy.exit_policy import ExitPolicy


def lines_of(axes: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What is drawn, by its label in the legend."""
    return {line.get_label(): (line.get_xdata(), line.get_ydata()) for line in axes.get_lines()}


def test_accuracy_over_cost_shows_curves_exits_points_and_plain() -> None:
    table = graded_table(300, 3)
    first = curve_of([1.5, 1, 2], [0.7, 0.6, 0.8], system="A")
    second = curve_of([1, 2], [0.5, 0.6], system="B", method="geometric")
    point = operating_point(table, "chosen", ExitPolicy((0.6, 0.6)))
    figure = figures.draw_accuracy_over_cost(
        [first, second], [anytime(table, "A")], [PlainNetwork("net", 150, 300, 4e9)], [point]
    )
    (axes,) = figure.axes
    assert axes.get_xlabel() == "mean cost of an image (GMACs)"
    assert axes.get_ylabel() == "top-1 accuracy (%)"
    drawn = lines_of(axes)
    x, y = drawn["A: thresholds searched"]
    assert x == pytest.approx([1, 1.5, 2])  # by cost
    assert y == pytest.approx([60, 70, 80])
    assert "B: geometric rule" in drawn
    x, y = drawn["all images leave at exit 1, 2, ..."]
    assert x == pytest.approx(np.asarray(table.cost) / 1e9)
    assert y == pytest.approx(100 * table.correct.mean(axis=0))
    assert drawn["net (whole image)"] == ([4.0], [50.0])
    x, y = drawn["A: chosen"]
    assert x == pytest.approx([point.macs / 1e9])  # type: ignore[operator]


def test_points_without_a_measured_time_are_not_drawn_over_time() -> None:
    table = graded_table(300, 3, milliseconds=np.array([1.0, 2.0, 3.0]))
    points = [operating_point(table, name, ExitPolicy((0.6, 0.6))) for name in ("a", "b")]
    times = [MeasuredTime("b", "point", 1.7, 1.6, 1.8, 1e9)]
    figure = figures.draw_accuracy_over_cost(
        [curve_of([1], [0.5])], [anytime(table)], [], points, times, costs="milliseconds"
    )
    (axes,) = figure.axes
    assert axes.get_xlabel() == "mean time of an image (ms)"
    drawn = lines_of(axes)
    assert drawn["B: b"][0] == [1.7]
    assert "A: a" not in drawn
    assert "thresholds searched" not in drawn  # that curve is over multiply-adds


def test_costs_far_apart_are_drawn_in_logarithms() -> None:
    table = graded_table(300, 3)
    near = figures.draw_accuracy_over_cost([], [anytime(table)])
    far = figures.draw_accuracy_over_cost(
        [], [anytime(table)], [PlainNetwork("net", 150, 300, 1e11)]
    )
    assert near.axes[0].get_xscale() == "linear"
    assert far.axes[0].get_xscale() == "log"


@pytest.mark.parametrize(
    ("images", "exits", "top5"), [(1, 1, True), (60, 2, False), (90, 12, True)]
)
def test_anytime_of_any_number_of_exits(images: int, exits: int, top5: bool) -> None:
    table = graded_table(images, exits, **({} if top5 else {"top5": None}))
    figure = figures.draw_anytime([anytime(table, "it")])
    assert len(figure.axes) == (2 if top5 else 1)
    shown = next(iter(lines_of(figure.axes[0]).values()))
    assert any(len(y) == exits for _, y in lines_of(figure.axes[0]).values())
    assert np.isfinite(np.asarray(shown[1], float)).all()
    assert len(figure.axes[0].get_xticks()) <= 10


def test_expected_inputs_shows_the_exits_of_its_points() -> None:
    shares = np.array([[1, 0, 0], [0.6, 0.3, 0.1], [0.2, 0.3, 0.5]], float)
    curve = curve_of([1, 2, 3], [0.6, 0.7, 0.8], share=shares)
    figure = figures.draw_expected_inputs(curve, samples=2)
    axes, *small = figure.axes
    assert "E(t)" in axes.get_xlabel()
    chosen = figures.sample_points(curve, 2)
    assert len(small) == len(chosen)
    for panel, place in zip(small, chosen, strict=True):
        assert [bar.get_height() for bar in panel.patches] == pytest.approx(100 * shares[place])
        assert f"{curve.inputs[place]:.2f} steps" in panel.get_title()


def test_sampled_points_are_different_and_ascending() -> None:
    shares = np.stack([1 - np.linspace(0, 1, 9), np.linspace(0, 1, 9)], axis=1)
    curve = curve_of(np.linspace(1, 2, 9), np.linspace(0.5, 0.9, 9), share=shares)
    chosen = figures.sample_points(curve, 4)
    assert len(chosen) == 4
    assert (np.diff(curve.inputs[chosen]) > 0).all()
    flat = curve_of([1, 2], [0.5, 0.5], share=np.array([[1.0, 0], [1, 0]]))
    assert len(figures.sample_points(flat, 4)) == 1


@pytest.mark.parametrize(("exits", "panels"), [(1, 1), (2, 2), (10, 10), (23, 10)])
def test_reliability_of_any_number_of_exits(exits: int, panels: int) -> None:
    table = graded_table(40, exits)
    found = [reliability(table.confidence[:, t], table.correct[:, t], t + 1) for t in range(exits)]
    figure = figures.draw_reliability(found)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert len(titles) == panels
    assert titles[0].startswith("exit 1:")
    assert titles[-1].startswith(f"exit {exits}:")


def test_speedups_are_against_the_reference() -> None:
    plain = MeasuredTime("plain", "plain", 10, 9, 11, 4e9)
    half = MeasuredTime("half", "point", 4, 4, 4, 1e9)
    figure = figures.draw_speedups([plain, half], plain)
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([4.0, 2.5])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["half"]


def test_names_with_formula_signs_are_drawn_as_they_are() -> None:
    table = graded_table(60, 2)
    figure = figures.draw_accuracy_over_cost(
        [],
        [anytime(table)],
        [PlainNetwork(name, 30, 60, 4e9) for name in ("net $x_1", "$\\bad$")],
    )
    png = theme.png(figure, dpi=50)  # an unbalanced dollar would raise
    assert Image.open(BytesIO(png)).format == "PNG"


def test_letters_go_with_the_number_of_steps() -> None:
    table = graded_table(100, 3)
    points = [operating_point(table, str(at), ExitPolicy((at, at))) for at in (0.9, 0.1)]
    assert [(letter, point.name) for letter, point in figures.lettered(points)] == [
        ("A", "0.1"), ("B", "0.9"),
    ]  # fmt: skip


def test_both_schemes_are_drawn_on_their_own_paper_and_the_same_bytes_come_again() -> None:
    exits = [anytime(graded_table(60, 3), "it")]
    for scheme, corner in ((theme.LIGHT, (255, 255, 255)), (theme.DARK, (27, 31, 36))):
        one, again = (
            theme.png(figures.draw_anytime(exits, theme=scheme), dpi=50) for _ in range(2)
        )
        assert one == again
        assert Image.open(BytesIO(one)).convert("RGB").getpixel((0, 0)) == corner


def test_no_figure_is_kept_by_pyplot() -> None:
    from matplotlib._pylab_helpers import Gcf

    before = set(Gcf.figs)
    figures.draw_anytime([anytime(graded_table(60, 3), "it")])
    assert set(Gcf.figs) == before


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"anchornet_ext\[report\]"):
        figures.draw_anytime([anytime(graded_table(60, 3), "it")])

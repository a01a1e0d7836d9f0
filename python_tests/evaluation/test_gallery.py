"""The gallery shows images of the table, at their exits, with the patches the model looks at."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from anchornet_ext.data.image_folder import scan
from anchornet_ext.evaluation import gallery
from anchornet_ext.evaluation.gallery import (
    LOOK_SIDE,
    Gallery,
    GalleryItem,
    choose,
    draw_card,
    draw_sheet,
    make_gallery,
)
from anchornet_ext.inference import TwoStageClassifier
from anchornet_ext.inference.command import load_photo
from anchornet_ext.inference.overlay import Look
from anchornet_ext.policy.exit_policy import ExitPolicy
from anchornet_ext.policy.exit_table import ExitTable


@pytest.fixture(scope="module")
def classifier(model: Path) -> TwoStageClassifier:
    return TwoStageClassifier.from_pretrained(model)


@pytest.fixture(scope="module")
def crops(photos: Path, classifier: TwoStageClassifier) -> torch.Tensor:
    """(N, 3, H, W), what the networks get."""
    samples = scan(photos)
    read = [load_photo(Path(path), classifier) for path in samples.paths]
    return classifier.preprocessing.normalise(torch.stack([photo.crop for photo in read]))


@pytest.fixture(scope="module")
def table(photos: Path, classifier: TwoStageClassifier, crops: torch.Tensor) -> ExitTable:
    """The exit table of all photos."""
    samples = scan(photos)
    logits = classifier.anytime_logits(crops)  # (T, N, n)
    confidence, prediction = logits.softmax(dim=-1).max(dim=-1)
    names = list(classifier.class_names or ())
    label = np.array([names.index(samples.class_names[k]) for k in samples.labels], np.int32)
    answers = prediction.T.numpy().astype(np.int32)
    return ExitTable(
        confidence.T.numpy().clip(0, 1),
        answers == label[:, None],
        np.array(classifier.macs_per_exit(), np.float64),
        answers,
        label,
        image_ids=np.array([str(Path(p).relative_to(photos)).encode() for p in samples.paths]),
    )


def middle_policy(table: ExitTable, **options: object) -> ExitPolicy:
    """Thresholds at which some images leave at every exit."""
    limits = np.quantile(table.confidence[:, :-1], 0.6, axis=0)
    return ExitPolicy(tuple(limits.tolist()), **options)  # type: ignore[arg-type]


def test_items_are_of_the_table_and_look_where_the_model_looks(
    table: ExitTable, classifier: TwoStageClassifier, photos: Path, crops: torch.Tensor
) -> None:
    policy = middle_policy(table)
    made = make_gallery(table, policy, classifier, photos, each=2)
    assert not made.problems
    rows = {table.image_path(row): row for row in range(table.num_images)}
    found = classifier.classify(crops, thresholds=policy.thresholds)
    assert {item.exit_step for item in made.items} == {1, 2, 3}
    for item in made.items:
        row = rows[item.name]
        step = item.exit_step
        assert step == int(found.exit_step[row])
        assert item.correct == bool(table.correct[row, step - 1])
        assert item.label == classifier.class_names[table.label[row]]  # type: ignore[index]
        assert item.answer == classifier.class_names[int(found.label[row])]  # type: ignore[index]
        assert [look.confidence for look in item.looks] == pytest.approx(
            table.confidence[row, :step].tolist()
        )
        assert item.looks[0].box is None
        corners = [look.box[:2] for look in item.looks[1:] if look.box is not None]
        assert corners == [tuple(place) for place in found.top_left[row, : step - 1].tolist()]


def test_the_numbers_left_are_of_all_images(
    table: ExitTable, classifier: TwoStageClassifier, photos: Path
) -> None:
    made = make_gallery(table, middle_policy(table), classifier, photos, each=1)
    assert made.left.sum() == table.num_images
    assert made.left.shape == (3, 2)
    for step in (1, 2, 3):
        for column, correct in enumerate((True, False)):
            expected = min(1, int(made.left[step - 1, column]))
            assert len(made.at(step, correct=correct)) == expected


def test_the_surest_answer_is_shown_as_the_answer(
    table: ExitTable, classifier: TwoStageClassifier, photos: Path
) -> None:
    never = ExitPolicy((1.0, 1.0), answer="surest")
    confidence = table.confidence.copy()
    confidence[::2] = confidence[::2, ::-1]  # these were surest at the glance
    table = replace(table, confidence=confidence)
    made = make_gallery(table, never, classifier, photos, each=9)
    surest = table.with_answer("surest")
    assert surest.prediction is not None
    rows = {table.image_path(row): row for row in range(table.num_images)}
    names = classifier.class_names or ()
    steps = set()
    for item in made.items:
        row = rows[item.name]
        assert item.answer == names[surest.prediction[row, -1]]
        assert item.correct == bool(surest.correct[row, -1])
        steps.add(item.answer_step)
    assert len(steps) > 1


def test_a_broken_photo_is_replaced_and_named(
    table: ExitTable, classifier: TwoStageClassifier, photos: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "photos"
    shutil.copytree(photos, copy)
    always = ExitPolicy((-1.0, -1.0))
    first = make_gallery(table, always, classifier, copy, each=1)
    for item in first.items:
        (copy / item.name).write_bytes(b"no picture")
    second = make_gallery(table, always, classifier, copy, each=1)
    assert len(second.problems) == len(first.items)
    for item in first.items:
        assert any(item.name in problem for problem in second.problems)
    assert len(second.items) == len(first.items)
    assert {item.name for item in second.items}.isdisjoint({item.name for item in first.items})


def test_a_missing_folder_is_not_searched_to_the_end(
    table: ExitTable, classifier: TwoStageClassifier, tmp_path: Path
) -> None:
    made = make_gallery(table, ExitPolicy((-1.0, -1.0)), classifier, tmp_path, each=1)
    assert not made.items
    assert 0 < len(made.problems) < table.num_images


def test_choice_follows_the_seed_and_covers_each_group() -> None:
    exits = np.array([0, 0, 0, 1, 1, 0, 1, 0])
    correct = np.array([1, 1, 0, 1, 0, 1, 0, 1], bool)
    groups = list(choose(exits, correct, 3, 0))
    assert [sorted(group.tolist()) for group in groups] == [
        [0, 1, 5, 7], [2], [3], [4, 6], [], [],
    ]  # fmt: skip
    again = list(choose(exits, correct, 3, 0))
    assert all(np.array_equal(*pair) for pair in zip(groups, again, strict=True))
    orders = {tuple(next(choose(exits, correct, 3, seed)).tolist()) for seed in range(20)}
    assert len(orders) > 5


def test_a_table_without_what_is_needed_is_refused(
    table: ExitTable, classifier: TwoStageClassifier, photos: Path
) -> None:
    bare = ExitTable(table.confidence, table.correct, table.cost)
    with pytest.raises(ValueError, match="predictions and image ids"):
        make_gallery(bare, ExitPolicy((0.5, 0.5)), classifier, photos)
    with pytest.raises(ValueError, match="has 2 exits, the model 3"):
        make_gallery(table.first_exits(2), ExitPolicy((0.5,)), classifier, photos)
    with pytest.raises(ValueError, match="3 exits"):
        make_gallery(table, ExitPolicy((0.5,)), classifier, photos)


def item_of(steps: int, *, correct: bool = True, side: int = 112) -> GalleryItem:
    looks = [Look("a class with a rather long name", 0.5)]
    looks += [Look("dog", 0.5 + step / 50, (8, 8, 103, 103)) for step in range(steps - 1)]
    crop = np.full((side, side, 3), 200, np.uint8)
    return GalleryItem("dog/1.png", crop, tuple(looks), 12, 95, steps, "cat", correct)


def test_cards_grow_with_the_looks_and_wrap() -> None:
    sizes = [draw_card(item_of(steps)).size for steps in (1, 2, 5, 6, 11)]
    widths, heights = zip(*sizes, strict=True)
    assert widths[0] < widths[1] < widths[2] == widths[3] == widths[4]
    assert heights[0] == heights[1] == heights[2] < heights[3] < heights[4]


def test_card_shows_verdict_patches_and_confidence() -> None:
    right, wrong = (
        np.asarray(draw_card(item_of(2, correct=is_right))) for is_right in (True, False)
    )
    assert tuple(right[100, 2]) == gallery.RIGHT
    assert tuple(wrong[100, 2]) == gallery.WRONG
    words = item_of(2, correct=False).in_words()
    assert "wrong, it is cat" in words
    assert "input 2, a patch: dog, 50 %" in words


def test_a_sheet_holds_all_cards_unscaled() -> None:
    cards = [draw_card(item_of(steps)) for steps in (1, 1, 1, 5)]
    sheet = draw_sheet(cards, "title")
    assert sheet.width >= gallery.SHEET_WIDTH
    assert sheet.height >= 2 * cards[0].height
    marked = (np.asarray(sheet) == gallery.RIGHT).all(axis=-1)
    assert marked.sum() >= sum(card.height for card in cards) * 5
    assert draw_sheet([], "nothing").height > 0


def test_an_empty_gallery_has_nothing_at_its_exits() -> None:
    empty = Gallery((), ExitPolicy((0.5,)), np.zeros((2, 2), np.int64))
    assert empty.at(1, correct=True) == []
    assert LOOK_SIDE > 95  # a patch is shown no smaller than it is

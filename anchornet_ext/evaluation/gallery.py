"""Pictures of images that left at each exit, right and wrong, as Fig. 8 shows them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from anchornet_ext.inference.drawing import (
    FAINT_INK,
    INK,
    PAPER,
    Colour,
    fitted,
    font,
    outline,
    patch_colour,
    tag,
)
from anchornet_ext.inference.overlay import (
    TILE_FOOTER_HEIGHT,
    TILE_HEADER_HEIGHT,
    Look,
    draw_look,
)
from anchornet_ext.policy.exit_policy import ExitPolicy
from anchornet_ext.policy.exit_table import ExitTable
from anchornet_ext.policy.outcome import apply_thresholds

if TYPE_CHECKING:
    from anchornet_ext.inference import TwoStageClassifier

#: Pixels of a card; the page shows it at 3/4 of that, so that it is sharp on fine screens.
CROP_SIDE = 200
LOOK_SIDE = 174
GAP = 14
MARGIN = 14
TITLE_HEIGHT = 34
LOOKS_IN_A_ROW = 5
SHEET_WIDTH = 2 * MARGIN + CROP_SIDE + LOOKS_IN_A_ROW * (LOOK_SIDE + GAP)
RIGHT: Colour = (0, 121, 90)
WRONG: Colour = (192, 79, 0)


@dataclass(frozen=True)
class GalleryItem:
    """One image and what was looked at until it left.

    Attributes:
        name: the image's path below the data folder.
        crop: what the system saw of it, uint8 (H, W, 3).
        looks: the inputs used, the whole picture first, with class and confidence after each.
        num_exits: T.
        glance_size: side of the first input in pixels.
        answer_step: after which input, from 1, the answer was found; the last one, unless the
            policy answers with the surest.
        label: the right class; None where not known.
        correct: whether the answer is right.
    """

    name: str
    crop: NDArray[np.uint8]
    looks: tuple[Look, ...]
    num_exits: int
    glance_size: int
    answer_step: int
    label: str | None
    correct: bool

    @property
    def answer(self) -> str:
        """The class it left with."""
        return self.looks[self.answer_step - 1].label

    @property
    def exit_step(self) -> int:
        """Where it left, from 1."""
        return len(self.looks)

    def in_words(self) -> str:
        """All that the picture shows, for those who cannot see it."""
        looks = "; ".join(
            f"input {step}, {'the whole picture' if look.box is None else 'a patch'}: "
            f"{look.label}, {100 * look.confidence:.0f} %"
            for step, look in enumerate(self.looks, start=1)
        )
        verdict = "right" if self.correct else f"wrong, it is {self.label or 'another class'}"
        return f"{self.name}: {looks}. Answer: {self.answer}, {verdict}."


@dataclass(frozen=True)
class Gallery:
    """A choice of images under one exit policy.

    Attributes:
        items: by exit, the right ones first.
        policy: what decided where they left.
        left: (T, 2) number of all images that left at each exit: right, wrong.
        problems: one line for each chosen image that could not be shown.
    """

    items: tuple[GalleryItem, ...]
    policy: ExitPolicy
    left: NDArray[np.int64]
    problems: tuple[str, ...] = field(default=())

    def at(self, exit_step: int, *, correct: bool) -> list[GalleryItem]:
        """The items that left at an exit (from 1), right or wrong."""
        return [
            item for item in self.items if item.exit_step == exit_step and item.correct is correct
        ]


def make_gallery(
    table: ExitTable,
    policy: ExitPolicy,
    model: TwoStageClassifier,
    root: Path,
    *,
    each: int = 3,
    seed: int = 0,
) -> Gallery:
    """Chooses images at random and runs the model on those few, to know its patches.

    What an image was taken for, and how sure the model was, comes from the table, so that the
    pictures show what was measured.

    Args:
        table: with predictions and image ids, of this model, as it was collected.
        policy: decides where the images leave and with which answer. Its temperatures must be on
            the table's grid.
        root: the data folder that the image ids lie below.
        each: how many right and as many wrong ones of each exit.
        seed: of the choice.

    Raises:
        ValueError: the table has no predictions or image ids, not as many exits as the model or the
            policy, or not the policy's temperatures.
    """
    if table.prediction is None or table.image_ids is None:
        raise ValueError("a gallery needs a table with predictions and image ids")
    if table.num_exits != model.num_exits:
        raise ValueError(f"the table has {table.num_exits} exits, the model {model.num_exits}")
    policy.require_exits(table.num_exits)
    if policy.temperatures is not None:
        table = table.with_temperatures(policy.temperatures)
    exit_index = apply_thresholds(table.confidence, policy.thresholds)
    correct = table.with_answer(policy.answer).correct[np.arange(table.num_images), exit_index]
    left = np.zeros((table.num_exits, 2), dtype=np.int64)
    np.add.at(left, (exit_index, (~correct).astype(np.int64)), 1)

    items: list[GalleryItem] = []
    problems: list[str] = []
    for group in choose(exit_index, correct, table.num_exits, seed):
        shown = 0
        for row in group:
            # One that cannot be read is replaced, but not by trying all of a broken folder.
            if shown == each or len(problems) > 10 * each:
                break
            step, right = int(exit_index[row]), bool(correct[row])
            made = _item(table, int(row), step, right, policy, model, root)
            if isinstance(made, str):
                problems.append(made)
                continue
            items.append(made)
            shown += 1
    return Gallery(tuple(items), policy, left, tuple(problems))


def choose(
    exit_index: NDArray[np.intp], correct: NDArray[np.bool_], num_exits: int, seed: int
) -> Iterator[NDArray[np.intp]]:
    """The images of each exit, right ones, then wrong ones, each group in a random order.

    A group's order depends on the seed, the exit and its own images alone.
    """
    for step in range(num_exits):
        for right in (True, False):
            rows = np.flatnonzero((exit_index == step) & (correct == right))
            generator = np.random.default_rng((seed, step, int(right)))
            yield generator.permutation(rows)


def _item(
    table: ExitTable,
    row: int,
    exit_index: int,
    correct: bool,
    policy: ExitPolicy,
    model: TwoStageClassifier,
    root: Path,
) -> GalleryItem | str:
    """One image run through the model for its patches, or what is wrong with it."""
    import torch

    from anchornet_ext.inference.command import load_photo
    from anchornet_ext.inference.policies import patch_locations
    from anchornet_ext.inference.prediction import class_label

    assert table.prediction is not None
    name = table.image_path(row)
    try:
        photo = load_photo(root / name, model)
    except (ValueError, OSError) as error:
        return str(error).replace(os.path.join(root, ""), "")
    boxes: list[tuple[int, int]] = []
    if exit_index:
        device = next(model.parameters()).device
        images = model.preprocessing.normalise(photo.crop[None].to(device))
        with torch.inference_mode():
            places = patch_locations(model, images)
        boxes = [(int(r), int(c)) for r, c in places[0, :exit_index].tolist()]
    size = model.patch_size
    looks = [
        Look(class_label(model, int(table.prediction[row, 0])), float(table.confidence[row, 0]))
    ]
    looks += (
        Look(
            class_label(model, int(table.prediction[row, step])),
            float(table.confidence[row, step]),
            (top, left, top + size, left + size),
        )
        for step, (top, left) in enumerate(boxes, start=1)
    )
    answer_step = len(looks)
    if policy.answer == "surest":  # of equal ones the later
        answer_step -= int(np.argmax([look.confidence for look in reversed(looks)]))
    return GalleryItem(
        name=name,
        crop=photo.crop.permute(1, 2, 0).numpy(),
        looks=tuple(looks),
        num_exits=table.num_exits,
        glance_size=model.glance_size,
        answer_step=answer_step,
        label=None if table.label is None else class_label(model, int(table.label[row])),
        correct=correct,
    )


def draw_card(item: GalleryItem) -> Image.Image:
    """One image: verdict, picture with numbered patches, and every look with its confidence."""
    columns = min(item.exit_step, LOOKS_IN_A_ROW)
    rows = -(-item.exit_step // LOOKS_IN_A_ROW)
    row_height = TILE_HEADER_HEIGHT + LOOK_SIDE + TILE_FOOTER_HEIGHT
    width = 2 * MARGIN + CROP_SIDE + columns * (LOOK_SIDE + GAP)
    canvas = Image.new("RGB", (width, TITLE_HEIGHT + rows * row_height + MARGIN), PAPER)
    draw = ImageDraw.Draw(canvas)
    colour = RIGHT if item.correct else WRONG
    draw.rectangle((0, 0, 5, canvas.height), fill=colour)

    verdict = "right" if item.correct else "wrong"
    tag(draw, (MARGIN, 7), verdict, colour)
    left = MARGIN + round(font(16).getlength(verdict)) + 22
    words = item.answer
    if not item.correct and item.label is not None:
        words = f"{item.answer}; it is {item.label}"
    words = fitted(words, font(18), width - left - MARGIN)
    draw.text((left, 18), words, INK, font(18), anchor="lm")

    top = TITLE_HEIGHT + 6
    crop = Image.fromarray(item.crop)
    shown = crop.resize((CROP_SIDE, CROP_SIDE), Image.Resampling.BICUBIC)
    marks = ImageDraw.Draw(shown)
    vertical, horizontal = CROP_SIDE / crop.height, CROP_SIDE / crop.width
    boxes = [look.box for look in item.looks if look.box is not None]
    placed = [
        (box[1] * horizontal, box[0] * vertical, box[3] * horizontal, box[2] * vertical)
        for box in boxes
    ]
    for number, box in enumerate(placed):
        outline(marks, box, patch_colour(number))
    for number, box in enumerate(placed):
        tag(marks, (box[0] + 2, box[1] + 2), str(number + 2), patch_colour(number))
    picture_top = top + TILE_HEADER_HEIGHT
    name = fitted(item.name, font(13), CROP_SIDE)
    draw.text((MARGIN, top + 17), name, FAINT_INK, font(13), anchor="lm")
    canvas.paste(shown, (MARGIN, picture_top))
    for index, look in enumerate(item.looks):
        row, column = divmod(index, LOOKS_IN_A_ROW)
        corner = (
            MARGIN + CROP_SIDE + GAP + column * (LOOK_SIDE + GAP),
            top + row * row_height,
        )
        draw_look(
            canvas,
            look,
            index,
            crop,
            item.glance_size,
            corner,
            LOOK_SIDE,
            is_exit=index == item.exit_step - 1,
            is_answer=index == item.answer_step - 1,
        )
    return canvas


def draw_sheet(cards: Sequence[Image.Image], title: str) -> Image.Image:
    """Cards in rows below a title, for a PNG file of its own."""
    rows: list[list[Image.Image]] = [[]]
    used = 0
    for card in cards:
        if rows[-1] and used + GAP + card.width > SHEET_WIDTH:
            rows.append([])
        used = card.width if not rows[-1] else used + GAP + card.width
        rows[-1].append(card)
    heights = [max((card.height for card in row), default=0) for row in rows]
    height = TITLE_HEIGHT + 2 * GAP + sum(heights) + len(rows) * GAP
    sheet = Image.new("RGB", (SHEET_WIDTH + 2 * GAP, height), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    text = fitted(title, font(22), SHEET_WIDTH)
    draw.text((GAP, GAP + TITLE_HEIGHT / 2), text, INK, font(22), anchor="lm")
    top = TITLE_HEIGHT + 2 * GAP
    for row, row_height in zip(rows, heights, strict=True):
        left = GAP
        for card in row:
            sheet.paste(card, (left, top))
            left += card.width + GAP
        top += row_height + GAP
    return sheet

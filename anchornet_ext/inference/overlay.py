"""One picture that shows where the network looked and when it was sure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from anchornet_ext.data.crop_geometry import Box, CropGeometry

from .drawing import (
    FAINT_INK,
    FRAME,
    INK,
    PAPER,
    Colour,
    Rectangle,
    darkened_outside,
    dashed_rectangle,
    disc,
    fit_within,
    fitted,
    font,
    heat_colours,
    outline,
    patch_colour,
    tag,
)

WIDTH = 1200
MARGIN = 28
GAP = 24
HEADER_HEIGHT = 96
PANEL_WIDTH = (WIDTH - 2 * MARGIN - GAP) // 2
PANEL_HEIGHT = 440
CAPTION_HEIGHT = 34
TILES_IN_A_ROW = 6
TILE_GAP = 16
TILE_HEADER_HEIGHT = 34
TILE_FOOTER_HEIGHT = 46
LARGEST_TILE = 216
EXIT_COLOUR: Colour = (24, 128, 56)
GLANCE_COLOUR: Colour = (70, 74, 80)


@dataclass(frozen=True)
class Look:
    """One input of the sequence that was used.

    Attributes:
        label: the class that leads after this input.
        confidence: its confidence, 0 to 1.
        box: the patch in pixels of the crop; None is the glance.
    """

    label: str
    confidence: float
    box: Box | None = None


@dataclass(frozen=True)
class Explanation:
    """What one overlay picture shows.

    Attributes:
        name: how the photo is called in the picture.
        photo: the upright photo, at its own or any smaller size.
        geometry: how the network's crop was cut from it.
        crop: the network's crop.
        looks: the inputs that were used, the glance first.
        num_exits: T, how many inputs there could have been.
        glance_size: side of the glance in pixels.
        macs, full_macs: what the photo cost and what all inputs would have cost, multiply-adds.
        activation_map: (h, w) of AnchorNet, or None where it was not computed.
        map_label: the class of that map.
        map_needed: False if the map was computed for this picture only.
        patch_size, stride: of AnchorNet, pixels of the crop.
        answer_step: after which input, from 1, the answer was found; None is the last.
    """

    name: str
    photo: Image.Image
    geometry: CropGeometry
    crop: Image.Image
    looks: Sequence[Look]
    num_exits: int
    glance_size: int
    macs: int
    full_macs: int
    activation_map: NDArray[np.float64] | None
    map_label: str | None
    map_needed: bool
    patch_size: int
    stride: int
    answer_step: int | None = None

    @property
    def answer(self) -> Look:
        """The look whose class and confidence are the answer."""
        return self.looks[-1 if self.answer_step is None else self.answer_step - 1]


def draw_overlay(explanation: Explanation) -> Image.Image:
    """The picture, RGB.

    On top the answer. Left the photo, darkened outside the network's crop, with the patches that
    were used. Right the crop with AnchorNet's activation map. Below every input that there could
    have been, with class and confidence after it, and where the photo left.
    """
    columns = min(explanation.num_exits, TILES_IN_A_ROW)
    rows = math.ceil(explanation.num_exits / columns)
    side = (WIDTH - 2 * MARGIN - (columns - 1) * TILE_GAP) // columns
    side = min(side, LARGEST_TILE)
    tile_height = TILE_HEADER_HEIGHT + side + TILE_FOOTER_HEIGHT
    panels_top = HEADER_HEIGHT
    tiles_top = panels_top + PANEL_HEIGHT + CAPTION_HEIGHT + GAP
    height = tiles_top + rows * tile_height + (rows - 1) * TILE_GAP + MARGIN
    canvas = Image.new("RGB", (WIDTH, height), PAPER)

    _draw_header(canvas, explanation)
    _draw_photo(canvas, explanation, (MARGIN, panels_top))
    _draw_map(canvas, explanation, (MARGIN + PANEL_WIDTH + GAP, panels_top))
    for index in range(explanation.num_exits):
        row, column = divmod(index, columns)
        corner = (
            MARGIN + column * (side + TILE_GAP),
            tiles_top + row * (tile_height + TILE_GAP),
        )
        _draw_tile(canvas, explanation, index, corner, side)
    return canvas


def percent(share: float) -> str:
    """A share as it is shown, "97.3 %"."""
    return f"{100 * share:.1f} %"


def _draw_header(canvas: Image.Image, explanation: Explanation) -> None:
    draw = ImageDraw.Draw(canvas)
    answer = explanation.answer
    used = len(explanation.looks)
    confidence = percent(answer.confidence)
    width = WIDTH - 2 * MARGIN
    room = width - font(34).getlength(confidence) - 20
    label = fitted(answer.label, font(34), room)
    draw.text((MARGIN, 36), label, INK, font(34), anchor="lm")
    draw.text(
        (MARGIN + font(34).getlength(label) + 18, 38), confidence, EXIT_COLOUR, font(28), "lm"
    )
    if used == 1:
        where = "exited at the glance"
    elif used < explanation.num_exits:
        where = f"exited at input {used} of {explanation.num_exits}"
    else:
        where = f"used all {used} inputs"
    cost = (
        f"{explanation.macs / 1e6:.0f} of {explanation.full_macs / 1e6:.0f} million "
        f"multiply-adds ({100 * explanation.macs / explanation.full_macs:.0f} %)"
    )
    details = f"   |   {where}   |   {cost}"
    name = fitted(explanation.name, font(17), width - font(17).getlength(details))
    draw.text((MARGIN, 74), name + details, FAINT_INK, font(17), anchor="lm")


def _draw_photo(canvas: Image.Image, explanation: Explanation, corner: tuple[int, int]) -> None:
    photo = explanation.photo
    size = fit_within(photo.size, (PANEL_WIDTH, PANEL_HEIGHT))
    height, width = explanation.geometry.photo_size
    scale = size[0] / width, size[1] / height

    def placed(box: Box) -> Rectangle:
        top, left, bottom, right = box
        return left * scale[0], top * scale[1], right * scale[0], bottom * scale[1]

    shown = photo.resize(size, Image.Resampling.BICUBIC)
    crop_box = placed(explanation.geometry.crop_box)
    shown = darkened_outside(shown, crop_box)
    draw = ImageDraw.Draw(shown)
    dashed_rectangle(draw, crop_box, (255, 255, 255))
    boxes = [
        placed(explanation.geometry.to_photo(look.box))
        for look in explanation.looks
        if look.box is not None
    ]
    for number, box in enumerate(boxes):
        outline(draw, box, patch_colour(number))
    # The numbers last, so that no box runs over one.
    for number, (left, top, _, _) in enumerate(boxes):
        tag(draw, (left + 2, top + 2), str(number + 2), patch_colour(number))
    place = (
        corner[0] + (PANEL_WIDTH - size[0]) // 2,
        corner[1] + (PANEL_HEIGHT - size[1]) // 2,
    )
    canvas.paste(shown, place)
    side = explanation.geometry.crop_size[0]
    _caption(canvas, corner, f"photo; dashed: the {side} x {side} crop that the network sees")


def _draw_map(canvas: Image.Image, explanation: Explanation, corner: tuple[int, int]) -> None:
    draw = ImageDraw.Draw(canvas)
    side = PANEL_HEIGHT
    # Square and colour bar with its two words, centred together.
    left = corner[0] + (PANEL_WIDTH - (side + 86)) // 2
    top = corner[1]
    shown = explanation.crop.resize((side, side), Image.Resampling.BICUBIC)
    if explanation.activation_map is None:
        canvas.paste(shown, (left, top))
        _caption(canvas, corner, "exited at the glance: AnchorNet did not run")
        return
    shown = heat_overlay(
        shown,
        explanation.activation_map,
        explanation.patch_size,
        explanation.stride,
        explanation.geometry.crop_size,
    )
    scale = side / explanation.geometry.crop_size[0]
    marks = ImageDraw.Draw(shown)
    for number, look in enumerate(explanation.looks[1:]):
        assert look.box is not None
        middle = ((look.box[1] + look.box[3]) / 2 * scale, (look.box[0] + look.box[2]) / 2 * scale)
        disc(marks, middle, str(number + 2), patch_colour(number))
    canvas.paste(shown, (left, top))

    bar_left, bar_width = left + side + 16, 18
    ramp = np.linspace(1, 0, side)[:, None].repeat(bar_width, axis=1)
    canvas.paste(Image.fromarray(heat_colours(ramp)), (bar_left, top))
    draw.text((bar_left + bar_width + 6, top + 8), "high", FAINT_INK, font(15), anchor="lm")
    draw.text((bar_left + bar_width + 6, top + side - 8), "low", FAINT_INK, font(15), anchor="lm")
    words = f"AnchorNet's activation for {explanation.map_label}, at the patches' centres"
    if not explanation.map_needed:
        words = f"exited at the glance; the map (for {explanation.map_label}) was not needed"
    _caption(canvas, corner, words)


def heat_overlay(
    crop: Image.Image,
    activation_map: NDArray[np.float64],
    patch_size: int,
    stride: int,
    crop_size: tuple[int, int],
) -> Image.Image:
    """The activation map laid over the crop, from its smallest to its largest value.

    Each activation is drawn at the centre of the patch that it was computed from, so the rim, half
    a patch wide, where no patch is centred, stays without colour.

    Args:
        crop: the network's crop at the size to draw, RGB.
        activation_map: (h, w).
        patch_size, stride: of AnchorNet, in pixels of the network's crop.
        crop_size: (height, width) of the network's crop in pixels.
    """
    height, width = activation_map.shape
    vertical, horizontal = crop.height / crop_size[0], crop.width / crop_size[1]
    first = (patch_size - stride) / 2  # where the cell around the first centre begins
    left, top = round(first * horizontal), round(first * vertical)
    size = max(1, round(width * stride * horizontal)), max(1, round(height * stride * vertical))

    values = np.nan_to_num(activation_map.astype(np.float64))
    spread = values.max() - values.min()
    values = (values - values.min()) / spread if spread > 0 else np.zeros_like(values)
    smooth = Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    heat = np.asarray(smooth, dtype=np.float64).clip(0, 1)

    # Grey below the colours, so that they are those of the bar and not the photo's.
    shown = Image.blend(crop, crop.convert("L").convert("RGB"), 0.75)
    box = (left, top, left + size[0], top + size[1])
    under = np.asarray(shown.crop(box), dtype=np.float64)
    opacity = (0.35 + 0.4 * heat)[:, :, None]
    mixed = (1 - opacity) * under + opacity * heat_colours(heat)
    shown.paste(Image.fromarray(mixed.round().astype(np.uint8)), box)
    dashed_rectangle(ImageDraw.Draw(shown), box, (255, 255, 255), width=1, dash=5)
    return shown


def _draw_tile(
    canvas: Image.Image,
    explanation: Explanation,
    index: int,
    corner: tuple[int, int],
    side: int,
) -> None:
    draw = ImageDraw.Draw(canvas)
    left, top = corner
    picture_top = top + TILE_HEADER_HEIGHT
    used = len(explanation.looks)
    if index >= used:
        kind = "glance" if index == 0 else "patch"
        frame = (left, picture_top, left + side, picture_top + side)
        dashed_rectangle(draw, frame, FRAME, width=2, dash=6)
        tag(draw, (left, top + 6), str(index + 1), FRAME)
        draw.text((left + 34, top + 17), kind, FRAME, font(16), anchor="lm")
        middle = (left + side / 2, picture_top + side / 2)
        draw.text(middle, "not needed", FAINT_INK, font(16), anchor="mm")
        return

    draw_look(
        canvas,
        explanation.looks[index],
        index,
        explanation.crop,
        explanation.glance_size,
        corner,
        side,
        is_exit=index == used - 1,
        is_answer=explanation.looks[index] is explanation.answer,
    )


def draw_look(
    canvas: Image.Image,
    look: Look,
    index: int,
    crop: Image.Image,
    glance_size: int,
    corner: tuple[int, int],
    side: int,
    *,
    is_exit: bool,
    is_answer: bool,
) -> None:
    """One input that was used: what was seen, and class and confidence after it.

    It takes `side` pixels in width and TILE_HEADER_HEIGHT + `side` + TILE_FOOTER_HEIGHT in height.

    Args:
        canvas: drawn on.
        look: the input.
        index: its place in the sequence, from 0.
        crop: the network's crop at its own size.
        glance_size: side in pixels of the input that shows the whole crop.
        corner: (left, top) on the canvas.
        side: of the picture of what was seen.
        is_exit: whether the photo left after this input.
        is_answer: whether its class is the answer.
    """
    draw = ImageDraw.Draw(canvas)
    left, top = corner
    picture_top = top + TILE_HEADER_HEIGHT
    colour = GLANCE_COLOUR if look.box is None else patch_colour(index - 1)
    tag(draw, (left, top + 6), str(index + 1), colour)
    kind = "glance" if look.box is None else "patch"
    draw.text((left + 34, top + 17), kind, INK, font(16), anchor="lm")
    if look.box is None:
        size = (glance_size, glance_size)
        seen = crop.resize(size, Image.Resampling.BICUBIC)
    else:
        rows_top, columns_left, rows_bottom, columns_right = (round(edge) for edge in look.box)
        seen = crop.crop((columns_left, rows_top, columns_right, rows_bottom))
    canvas.paste(seen.resize((side, side), Image.Resampling.BICUBIC), (left, picture_top))
    draw.rectangle(
        (left, picture_top, left + side - 1, picture_top + side - 1), outline=colour, width=4
    )

    text_top = picture_top + side + 18
    confidence = percent(look.confidence)
    room = side - font(16).getlength(confidence) - 10
    draw.text((left, text_top), fitted(look.label, font(16), room), INK, font(16), anchor="lm")
    draw.text((left + side, text_top), confidence, INK, font(16), anchor="rm")
    bar = (left, text_top + 16, left + side - 1, text_top + 23)
    draw.rectangle(bar, fill=(228, 230, 233))
    filled = round((side - 1) * min(max(look.confidence, 0.0), 1.0))
    draw.rectangle(
        (bar[0], bar[1], bar[0] + filled, bar[3]), fill=EXIT_COLOUR if is_answer else FAINT_INK
    )
    if is_exit or is_answer:
        word = "exited here" if is_exit else "surest here"
        width = font(14).getlength(word) + 12
        tag(draw, (left + side - width, top + 7), word, EXIT_COLOUR if is_answer else FRAME, 14)


def _caption(canvas: Image.Image, corner: tuple[int, int], words: str) -> None:
    draw = ImageDraw.Draw(canvas)
    middle = (corner[0] + PANEL_WIDTH / 2, corner[1] + PANEL_HEIGHT + CAPTION_HEIGHT / 2 + 2)
    draw.text(middle, fitted(words, font(16), PANEL_WIDTH), FAINT_INK, font(16), anchor="mm")

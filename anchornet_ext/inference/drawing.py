"""Small pieces that the overlay pictures are drawn with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
#: (left, top, right, bottom) in pixels of the canvas, as Pillow orders them.
Rectangle = tuple[float, float, float, float]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

INK: Colour = (32, 33, 36)
FAINT_INK: Colour = (112, 117, 124)
PAPER: Colour = (250, 250, 248)
FRAME: Colour = (205, 208, 212)
WHITE: Colour = (255, 255, 255)

#: Colours of the patches in their order, apart from each other also for the colour-blind (after
#: Okabe and Ito), repeated when there are more patches.
PATCH_COLOURS: tuple[Colour, ...] = (
    (230, 97, 0),
    (0, 140, 220),
    (0, 158, 115),
    (214, 79, 160),
    (240, 200, 30),
    (110, 80, 200),
)

#: From low to high activation; dark to light as well, so that it survives a grey print.
_HEAT = np.array(
    [(13, 8, 60), (84, 15, 109), (160, 43, 98), (220, 80, 57), (248, 149, 30), (252, 240, 150)],
    dtype=np.float64,
)


def font(size: int) -> Font:
    """Pillow's own font, so that no font file has to be found."""
    return ImageFont.load_default(size)


def patch_colour(number: int) -> Colour:
    """Colour of patch `number`, counted from 0."""
    return PATCH_COLOURS[number % len(PATCH_COLOURS)]


def text_colour_on(background: Colour) -> Colour:
    """Dark or white, whichever reads better."""
    red, green, blue = background
    return INK if 0.299 * red + 0.587 * green + 0.114 * blue > 160 else WHITE


def heat_colours(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Values (...) in [0, 1] to colours (..., 3)."""
    stops = np.linspace(0, 1, len(_HEAT))
    channels = [np.interp(values, stops, _HEAT[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def fitted(text: str, face: Font, width: float) -> str:
    """`text`, with its middle replaced by an ellipsis where it is wider than `width` pixels."""
    if face.getlength(text) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        short = text[: (kept + 1) // 2] + "..." + text[len(text) - kept // 2 :]
        if face.getlength(short) <= width:
            return short
    return "..."


def fit_within(size: tuple[int, int], limit: tuple[int, int]) -> tuple[int, int]:
    """The largest (width, height) of the same shape as `size` within `limit`."""
    scale = min(limit[0] / size[0], limit[1] / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def dashed_rectangle(
    draw: ImageDraw.ImageDraw, box: Rectangle, colour: Colour, width: int = 2, dash: int = 8
) -> None:
    """An outline of dashes, `dash` pixels on and off, inside `box`."""
    left, top, right, bottom = (round(edge) for edge in box)
    for start in range(left, right, 2 * dash):
        end = min(start + dash, right) - 1
        draw.rectangle((start, top, end, top + width - 1), fill=colour)
        draw.rectangle((start, bottom - width, end, bottom - 1), fill=colour)
    for start in range(top, bottom, 2 * dash):
        end = min(start + dash, bottom) - 1
        draw.rectangle((left, start, left + width - 1, end), fill=colour)
        draw.rectangle((right - width, start, right - 1, end), fill=colour)


def outline(draw: ImageDraw.ImageDraw, box: Rectangle, colour: Colour, width: int = 3) -> None:
    """An outline with a thin dark rim on both sides, to be seen on any background."""
    left, top, right, bottom = (round(edge) for edge in box)
    draw.rectangle((left - 1, top - 1, right, bottom), outline=INK, width=width + 2)
    draw.rectangle((left, top, right - 1, bottom - 1), outline=colour, width=width)


def tag(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    colour: Colour,
    size: int = 16,
) -> None:
    """A filled label with its top left corner at `corner`."""
    face = font(size)
    left, top = (round(edge) for edge in corner)
    width = round(face.getlength(text)) + 12
    draw.rectangle((left, top, left + width - 1, top + size + 5), fill=colour)
    draw.text(
        (left + width / 2, top + size / 2 + 3), text, text_colour_on(colour), face, anchor="mm"
    )


def disc(draw: ImageDraw.ImageDraw, centre: tuple[float, float], text: str, colour: Colour) -> None:
    """A numbered point."""
    x, y = centre
    draw.ellipse((x - 13, y - 13, x + 13, y + 13), fill=colour, outline=WHITE, width=2)
    draw.text((x, y), text, text_colour_on(colour), font(15), anchor="mm")


def darkened_outside(picture: Image.Image, box: Rectangle, strength: float = 0.45) -> Image.Image:
    """`picture` with everything outside `box` darkened."""
    dark = Image.blend(picture, Image.new("RGB", picture.size), strength)
    left, top, right, bottom = (round(edge) for edge in box)
    dark.paste(picture.crop((left, top, right, bottom)), (left, top))
    return dark

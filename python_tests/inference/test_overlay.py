"""The overlay picture shows boxes where they are and heat where it belongs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from anchornet_ext.data.crop_geometry import centre_crop_geometry
from anchornet_ext.inference import overlay
from anchornet_ext.inference.drawing import fitted, font, heat_colours, patch_colour
from anchornet_ext.inference.overlay import Explanation, Look, draw_overlay, heat_overlay

PANEL_TOP, PANEL_LEFT = overlay.HEADER_HEIGHT, overlay.MARGIN


def explanation(photo_size: tuple[int, int] = (400, 300), **changes: Any) -> Explanation:
    """A black photo of (width, height) that used the glance and two patches."""
    width, height = photo_size
    values: dict[str, Any] = {
        "name": "dog.jpg",
        "photo": Image.new("RGB", photo_size),
        "geometry": centre_crop_geometry((height, width), 256, 224),
        "crop": Image.new("RGB", (224, 224)),
        "looks": [
            Look("cat", 0.3),
            Look("dog", 0.6, (16, 24, 111, 119)),
            Look("dog", 0.9, (128, 120, 223, 215)),
        ],
        "num_exits": 5,
        "glance_size": 95,
        "macs": 40_000_000,
        "full_macs": 100_000_000,
        "activation_map": np.eye(17),
        "map_label": "dog",
        "map_needed": True,
        "patch_size": 95,
        "stride": 8,
    }
    return Explanation(**values | changes)


def extent(pixels: np.ndarray, colour: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) of the pixels of exactly this colour."""
    rows, columns = (pixels == np.array(colour)).all(axis=-1).nonzero()
    assert len(rows) > 0, f"nothing has the colour {colour}"
    return rows.min(), columns.min(), rows.max() + 1, columns.max() + 1


def photo_panel(picture: Image.Image) -> np.ndarray:
    pixels = np.asarray(picture)
    return pixels[
        PANEL_TOP : PANEL_TOP + overlay.PANEL_HEIGHT, PANEL_LEFT : PANEL_LEFT + overlay.PANEL_WIDTH
    ]


@pytest.mark.parametrize(
    "photo_size", [(400, 300), (300, 400), (4000, 3000), (60, 50), (1600, 300)]
)
@pytest.mark.parametrize("shrunk", [False, True])
def test_boxes_are_drawn_where_the_patches_are(photo_size: tuple[int, int], shrunk: bool) -> None:
    shown = explanation(photo_size)
    if shrunk:  # the photo may come smaller than the geometry says
        half = (photo_size[0] // 2, photo_size[1] // 2)
        shown = explanation(photo_size, photo=shown.photo.resize(half))
    panel = photo_panel(draw_overlay(shown))
    scale = min(overlay.PANEL_WIDTH / photo_size[0], overlay.PANEL_HEIGHT / photo_size[1])
    down = (overlay.PANEL_HEIGHT - photo_size[1] * scale) / 2
    right = (overlay.PANEL_WIDTH - photo_size[0] * scale) / 2
    for number, look in enumerate(shown.looks[1:]):
        assert look.box is not None
        expected = [edge * scale for edge in shown.geometry.to_photo(look.box)]
        expected = [e + shift for e, shift in zip(expected, (down, right) * 2, strict=True)]
        assert extent(panel, patch_colour(number)) == pytest.approx(expected, abs=2.5)


def test_inputs_that_were_not_used_draw_no_box() -> None:
    panel = photo_panel(draw_overlay(explanation(looks=[Look("cat", 0.99)])))
    for number in range(4):
        assert not (panel == np.array(patch_colour(number))).all(axis=-1).any()


@pytest.mark.parametrize("changes", [{"activation_map": None, "map_label": None}, {}])
def test_a_photo_that_left_at_the_glance(changes: dict[str, Any]) -> None:
    """With or without a map that was made for the picture only."""
    looks = [Look("cat", 0.99)]
    without = draw_overlay(explanation(looks=looks, map_needed=False, **changes))
    needed = draw_overlay(explanation(looks=looks, map_needed=True, **changes))
    # The words below the map tell whether it was needed; without a map there is nothing to tell.
    assert (np.asarray(without) != np.asarray(needed)).any() == (not changes)


@pytest.mark.parametrize(("rows", "columns"), [(17, 17), (1, 1), (5, 9)])
def test_heat_lies_at_the_centre_of_its_patch(rows: int, columns: int) -> None:
    patch, stride = 95, 8
    size = (patch + stride * (rows - 1), patch + stride * (columns - 1))
    for row, column in ((0, 0), (rows - 1, columns - 1), (rows // 2, columns // 2)):
        hot = np.zeros((rows, columns))
        hot[row, column] = 3.0
        crop = Image.new("RGB", (2 * size[1], 2 * size[0]), (90, 90, 90))
        shown = np.asarray(heat_overlay(crop, hot, patch, stride, size)).astype(int)
        if rows * columns > 1:
            brightness = shown[..., 0] + shown[..., 1]
            # The dashed outline is brighter than any heat.
            brightness[(shown == 255).all(axis=-1)] = 0
            top, left = np.unravel_index(brightness.argmax(), brightness.shape)
            assert top / 2 == pytest.approx(row * stride + patch / 2, abs=stride)
            assert left / 2 == pytest.approx(column * stride + patch / 2, abs=stride)
        # No patch is centred on the rim: it stays grey.
        rim = shown[: patch - stride - 2]
        assert (rim == rim[..., :1]).all()


@pytest.mark.parametrize("value", [0.0, 5.0, np.nan])
def test_a_flat_map_is_drawn_low(value: float) -> None:
    crop = Image.new("RGB", (224, 224))
    flat = heat_overlay(crop, np.full((17, 17), value), 95, 8, (224, 224))
    low = heat_overlay(crop, np.zeros((17, 17)), 95, 8, (224, 224))
    assert np.array_equal(np.asarray(flat), np.asarray(low))


def test_colours_go_from_dark_to_light() -> None:
    light = heat_colours(np.linspace(0, 1, 50)).astype(float) @ (0.299, 0.587, 0.114)
    assert (np.diff(light) > 0).all()


@pytest.mark.parametrize("num_exits", [2, 5, 6, 13])
def test_every_input_has_its_place(num_exits: int) -> None:
    picture = draw_overlay(explanation(num_exits=num_exits))
    assert picture.width == overlay.WIDTH
    columns = min(num_exits, overlay.TILES_IN_A_ROW)
    rows = -(-num_exits // columns)
    assert picture.height > overlay.PANEL_HEIGHT + rows * 150


@pytest.mark.parametrize("name", ["x" * 300, "日本 " * 40, ""])
def test_names_of_any_length(name: str) -> None:
    looks = [Look(name, 0.5), Look(name, 0.6, (0, 0, 95, 95))]
    picture = draw_overlay(explanation(name=name, looks=looks, map_label=name))
    margin = np.asarray(picture)[:, -overlay.MARGIN // 2 :]
    assert (margin == margin[0, 0]).all()  # nothing runs over the edge


def test_text_is_shortened_in_its_middle() -> None:
    face = font(16)
    assert fitted("short", face, 500) == "short"
    text = fitted("beginning of a long name and its end", face, 150)
    assert text.startswith("begin")
    assert text.endswith("end")
    assert face.getlength(text) <= 150
    assert fitted("wide", face, 1) == "..."

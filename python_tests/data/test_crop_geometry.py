"""Boxes of the crop land where its pixels came from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anchornet_ext.data.crop_geometry import centre_crop_geometry
from anchornet_ext.data.photos import read_photo
from anchornet_ext.data.transforms import Preprocessing

side = st.integers(1, 3000)


@settings(max_examples=200, deadline=None)
@given(side, side, st.integers(100, 300), st.integers(1, 100))
def test_the_crop_is_in_the_middle_of_the_photo(
    height: int, width: int, resize_size: int, crop_size: int
) -> None:
    """Within it, and in its middle up to half a resized pixel."""
    geometry = centre_crop_geometry((height, width), resize_size, crop_size)
    top, left, bottom, right = geometry.crop_box
    assert min(top, left) >= 0
    assert bottom <= height + 1e-6
    assert right <= width + 1e-6
    assert abs(top - (height - bottom)) <= height / geometry.resized_size[0] + 1e-6
    assert abs(left - (width - right)) <= width / geometry.resized_size[1] + 1e-6


@pytest.mark.parametrize("size", [(300, 500), (500, 300), (61, 60), (256, 256), (1000, 257)])
@pytest.mark.parametrize("crop_size", [224, 131])
def test_boxes_are_where_the_pixels_came_from(size: tuple[int, int], crop_size: int) -> None:
    """A photo whose colours are its coordinates: the crop then says where each pixel was."""
    height, width = size
    photo = torch.empty(3, height, width)
    photo[0] = torch.linspace(0.5, height - 0.5, height)[:, None]
    photo[1] = torch.linspace(0.5, width - 0.5, width)[None, :]
    photo[2] = 0
    # 8 bits hold 255 steps, enough to see half a percent of the photo.
    scale = 255 / torch.tensor([height, width, 1.0])[:, None, None]
    preprocessing = Preprocessing(resize_size=256, crop_size=crop_size)
    crop = preprocessing.crop((photo * scale).round().to(torch.uint8)).float() / scale
    geometry = preprocessing.geometry(height, width)
    for row, column in ((0, 0), (crop_size // 2, crop_size // 3), (crop_size - 1, crop_size - 1)):
        top, left, bottom, right = geometry.to_photo((row, column, row + 1, column + 1))
        assert float(crop[0, row, column]) == pytest.approx((top + bottom) / 2, abs=height / 150)
        assert float(crop[1, row, column]) == pytest.approx((left + right) / 2, abs=width / 150)


def test_boxes_of_a_turned_photo_are_in_its_upright_pixels(tmp_path: Path) -> None:
    """A camera held upright stores a lying picture and EXIF orientation 6."""
    upright = np.zeros((400, 300, 3), dtype=np.uint8)
    upright[250:300, 200:240] = 255  # the object
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.fromarray(upright).transpose(Image.Transpose.ROTATE_90)
    assert stored.size == (400, 300)
    stored.save(tmp_path / "a.png", exif=exif)
    photo = read_photo(tmp_path / "a.png")
    assert photo.size == (300, 400)

    preprocessing = Preprocessing()
    crop = preprocessing(photo).mean(dim=0)  # (224, 224)
    rows, columns = (crop > 0).nonzero(as_tuple=True)
    seen = (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
    geometry = preprocessing.geometry(photo.height, photo.width)
    found = geometry.to_photo(tuple(float(edge) for edge in seen))  # type: ignore[arg-type]
    assert found == pytest.approx((250, 200, 300, 240), abs=2)


def test_no_pixels() -> None:
    with pytest.raises(ValueError, match="0x5"):
        centre_crop_geometry((0, 5), 256, 224)

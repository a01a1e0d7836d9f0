"""Every kind of file that people call a photo, and those that are none."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anchornet_ext.data.photos import read_photo
from anchornet_ext.data.transforms import Preprocessing

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
ORIENTATION = 0x0112


def quadrants(size: tuple[int, int] = (6, 4)) -> Image.Image:
    """Red, green / blue, white: every flip and turn of it looks different."""
    picture = Image.new("RGB", size)
    width, height = size[0] // 2, size[1] // 2
    for corner, colour in zip(
        ((0, 0), (width, 0), (0, height), (width, height)), (RED, GREEN, BLUE, WHITE), strict=True
    ):
        picture.paste(colour, (*corner, corner[0] + width, corner[1] + height))
    return picture


def corners(image: Image.Image) -> list[tuple[int, ...]]:
    width, height = image.size
    places = ((0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1))
    return [image.getpixel(place) for place in places]  # type: ignore[misc]


# What each EXIF orientation says was done to the upright picture before it was stored.
STORED_AS: dict[int, Callable[[Image.Image], Image.Image]] = {
    1: lambda image: image,
    2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
    4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
}


@pytest.mark.parametrize("orientation", STORED_AS)
@pytest.mark.parametrize("suffix", [".png", ".webp", ".tiff"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"photo{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    STORED_AS[orientation](quadrants()).save(path, exif=exif, **options)
    photo = read_photo(path)
    assert photo.size == (6, 4)
    assert corners(photo) == [RED, GREEN, BLUE, WHITE]
    assert photo.getexif().get(ORIENTATION, 1) == 1  # nobody turns it a second time


def test_jpeg_with_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    STORED_AS[6](quadrants((64, 32))).save(tmp_path / "a.jpg", exif=exif, quality=95)
    photo = read_photo(tmp_path / "a.jpg")
    assert photo.size == (64, 32)
    for got, expected in zip(corners(photo), (RED, GREEN, BLUE, WHITE), strict=True):
        assert np.allclose(got, expected, atol=6)


def test_transparency_shows_white(tmp_path: Path) -> None:
    """The hidden colour under full transparency must not come through."""
    picture = Image.new("RGBA", (3, 1))
    picture.putpixel((0, 0), (255, 0, 0, 255))
    picture.putpixel((1, 0), (0, 255, 0, 0))
    picture.putpixel((2, 0), (0, 0, 0, 128))
    picture.save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png")
    assert photo.mode == "RGB"
    pixels = [photo.getpixel((x, 0)) for x in range(3)]
    assert pixels[:2] == [RED, WHITE]
    assert np.allclose(pixels[2], 127, atol=1)


def test_grey_with_alpha(tmp_path: Path) -> None:
    picture = Image.new("LA", (2, 1))
    picture.putpixel((0, 0), (100, 255))
    picture.putpixel((1, 0), (0, 0))
    picture.save(tmp_path / "a.png")
    photo = read_photo(tmp_path / "a.png")
    assert [photo.getpixel((x, 0)) for x in range(2)] == [(100,) * 3, WHITE]


@pytest.mark.parametrize("suffix", [".png", ".gif"])
def test_palette_with_and_without_transparency(tmp_path: Path, suffix: str) -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([*RED, *BLUE])
    picture.putdata([0, 1])
    picture.save(tmp_path / f"opaque{suffix}")
    picture.save(tmp_path / f"clear{suffix}", transparency=1)
    opaque = read_photo(tmp_path / f"opaque{suffix}")
    clear = read_photo(tmp_path / f"clear{suffix}")
    assert [opaque.getpixel((x, 0)) for x in range(2)] == [RED, BLUE]
    assert [clear.getpixel((x, 0)) for x in range(2)] == [RED, WHITE]


def test_rgb_with_one_transparent_colour(tmp_path: Path) -> None:
    picture = Image.new("RGB", (2, 1), RED)
    picture.putpixel((1, 0), (1, 2, 3))
    picture.save(tmp_path / "a.png", transparency=(1, 2, 3))
    photo = read_photo(tmp_path / "a.png")
    assert [photo.getpixel((x, 0)) for x in range(2)] == [RED, WHITE]


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".pgm"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 128, 257, 1000, 32768, 65535]], dtype=np.uint16)
    path = tmp_path / f"a{suffix}"
    if suffix == ".pgm":
        path.write_bytes(b"P5 6 1 65535\n" + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values).save(path)
    photo = np.asarray(read_photo(path))
    assert photo.shape == (1, 6, 3)
    assert photo[0, :, 0].tolist() == [0, 0, 1, 4, 128, 255]
    assert (photo == photo[:, :, :1]).all()


def test_big_endian_16_bit_tiff(tmp_path: Path) -> None:
    """A one-strip big-endian TIFF, written by hand: Pillow itself writes little endian."""
    values = np.array([[0, 65535], [32768, 257]], dtype=">u2")
    tags = [
        (256, 3, 2), (257, 3, 2), (258, 3, 16), (259, 3, 1), (262, 3, 1), (273, 4, 8),
        (277, 3, 1), (278, 3, 2), (279, 4, 8),
    ]  # fmt: skip
    entries = b"".join(
        tag.to_bytes(2, "big")
        + kind.to_bytes(2, "big")
        + (1).to_bytes(4, "big")
        + (value.to_bytes(2, "big") + b"\0\0" if kind == 3 else value.to_bytes(4, "big"))
        for tag, kind, value in tags
    )
    header = b"MM\0*" + (16).to_bytes(4, "big")
    path = tmp_path / "a.tif"
    path.write_bytes(
        header + values.tobytes() + len(tags).to_bytes(2, "big") + entries + b"\0\0\0\0"
    )
    assert np.asarray(read_photo(path))[..., 0].tolist() == [[0, 255], [128, 1]]


def test_float_and_32_bit_grey_use_their_own_range(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-1.0, 0.0, 1.0]], dtype=np.float32)).save(tmp_path / "float.tiff")
    Image.fromarray(np.array([[0, 10**6]], dtype=np.int32)).save(tmp_path / "int.tiff")
    Image.fromarray(np.full((1, 2), 7.0, dtype=np.float32)).save(tmp_path / "flat.tiff")
    assert np.asarray(read_photo(tmp_path / "float.tiff"))[0, :, 0].tolist() == [0, 128, 255]
    assert np.asarray(read_photo(tmp_path / "int.tiff"))[0, :, 0].tolist() == [0, 255]
    assert np.asarray(read_photo(tmp_path / "flat.tiff"))[0, :, 0].tolist() == [128, 128]


def test_float_grey_with_nan(tmp_path: Path) -> None:
    Image.fromarray(np.array([[np.nan, 0.0, 2.0]], dtype=np.float32)).save(tmp_path / "a.tiff")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.asarray(read_photo(tmp_path / "a.tiff"))[0, :, 0].tolist() == [0, 0, 255]


def test_one_bit_grey_and_cmyk(tmp_path: Path) -> None:
    one_bit = Image.new("1", (2, 1))
    one_bit.putpixel((1, 0), 1)
    one_bit.save(tmp_path / "a.png")
    assert corners(read_photo(tmp_path / "a.png"))[:2] == [(0, 0, 0), WHITE]
    Image.new("L", (2, 2), 77).save(tmp_path / "b.png")
    assert corners(read_photo(tmp_path / "b.png")) == [(77, 77, 77)] * 4
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "c.jpg", quality=95)
    assert np.allclose(read_photo(tmp_path / "c.jpg").getpixel((8, 8)), RED, atol=6)


def test_animation_is_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (GREEN, BLUE)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_photo(tmp_path / "a.gif").getpixel((0, 0)) == GREEN


def noisy(size: int = 64) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".gif", ".bmp", ".tiff"])
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.9])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"half{suffix}"
    noisy().save(path)
    blob = path.read_bytes()
    path.write_bytes(blob[: int(len(blob) * keep)])
    with pytest.raises(ValueError, match=f"half{suffix}"):
        read_photo(path)


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ValueError, match=r"empty\.jpg is empty"):
        read_photo(tmp_path / "empty.jpg")
    with pytest.raises(ValueError, match=r"text\.png is not a picture"):
        read_photo(tmp_path / "text.png")
    with pytest.raises(ValueError, match=r"folder\.png is a folder"):
        read_photo(tmp_path / "folder.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.png is not a regular file"):
        read_photo(tmp_path / "pipe.png")
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        read_photo(tmp_path / "missing.png")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".gif", ".bmp", ".tiff"])
def test_broken_bytes_give_a_photo_or_a_value_error(tmp_path: Path, suffix: str) -> None:
    """Whatever a decoder raises on garbage, callers have to expect one exception only."""
    noisy().save(tmp_path / f"a{suffix}")
    blob = (tmp_path / f"a{suffix}").read_bytes()
    rng = np.random.default_rng(1)
    broken = 0
    for _ in range(40):
        damaged = bytearray(blob)
        for place in rng.integers(0, min(len(blob), 400), 6):
            damaged[place] = rng.integers(256)
        path = tmp_path / f"damaged{suffix}"
        path.write_bytes(bytes(damaged))
        try:
            assert read_photo(path).mode == "RGB"
        except ValueError as error:
            broken += 1
            assert "damaged" in str(error)  # noqa: PT017
    assert broken > 0


def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noisy().save(tmp_path / "big.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 // 2 - 1)
    with pytest.raises(ValueError, match=r"big\.png has too many pixels.*MAX_IMAGE_PIXELS"):
        read_photo(tmp_path / "big.png")
    # Between the limit and twice the limit Pillow warns; large sensors are there.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_photo(tmp_path / "big.png").size == (64, 64)


def test_a_forbidden_file_stays_a_permission_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read every file, so that the refusal is put on instead of taking the rights away."""

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    noisy().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(PermissionError, match=r"a\.png"):
        read_photo(tmp_path / "a.png")


@pytest.mark.parametrize("size", [(1, 1), (40, 30), (94, 500)])
def test_small_photos_are_enlarged_by_the_preprocessing(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    Image.new("RGB", size, (124, 116, 104)).save(tmp_path / "a.png")
    image = Preprocessing()(read_photo(tmp_path / "a.png"))
    assert image.shape == (3, 224, 224)
    assert image.abs().max() < 0.02  # the mean colour of ImageNet

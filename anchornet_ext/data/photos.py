"""Reads any photo as people have them: upright, in RGB, 8 bits a channel."""

from __future__ import annotations

import stat
import warnings
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

#: Names' endings that are taken for photos when a folder is searched, in small letters.
PHOTO_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpe", ".jpeg", ".jp2", ".png", ".webp", ".avif", ".bmp", ".gif"),
        *(".tif", ".tiff", ".ppm", ".pgm", ".pnm"),
    )
)


def read_photo(path: str | PathLike[str]) -> Image.Image:
    """Reads a photo as an upright RGB picture.

    - The EXIF orientation is applied, so rows and columns are those of the picture as it is seen.
    - Transparency (RGBA, LA, palette or a transparent colour) is composited on white: the colour of
      the page that such pictures are made for, where Pillow's own conversion would show whatever
      colours lie under the transparent pixels.
    - 16-bit grey is scaled from 0..65535 to 0..255; Pillow's own conversion would clip it at 255.
      32-bit and float grey has no such range and is scaled from its smallest to its largest value.
    - Palettes, grey, 1-bit, CMYK and the other modes are converted to RGB.
    - Of an animation it is the first frame.

    Raises:
        ValueError: the file is not a picture, is empty, a folder or a pipe, cut short or broken, or
            has more pixels than Pillow's limit against decompression bombs. The message names it.
        FileNotFoundError, PermissionError: the file cannot be opened.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a photo")
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):  # a pipe, say, which would be waited for
        raise ValueError(f"{path} is not a regular file")
    if about.st_size == 0:
        raise ValueError(f"{path} is empty")
    try:
        with warnings.catch_warnings():
            # Pillow warns above its pixel limit, where photos of large sensors lie, and refuses
            # above twice the limit. It also warns of metadata that it cannot read.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                image.load()
                opens_16_bits_as_32 = image.format in ("PNG", "PPM")
                # Before any conversion: some conversions drop the EXIF data.
                return _to_rgb(ImageOps.exif_transpose(image), opens_16_bits_as_32)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{path} has too many pixels ({error}); if you trust the file, raise "
            "PIL.Image.MAX_IMAGE_PIXELS"
        ) from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is not a picture that Pillow can read") from error
    except (PermissionError, FileNotFoundError):
        raise
    except Exception as error:
        # Decoders raise nearly anything on broken files: OSError, SyntaxError, struct.error,
        # EOFError, IndexError, ZeroDivisionError, MemoryError, ...
        raise ValueError(f"{path} is broken or cut short: {error}") from error


def _to_rgb(image: Image.Image, opens_16_bits_as_32: bool) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _grey_to_8_bits(image, opens_16_bits_as_32).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layers = image.convert("RGBA")
        white = Image.new("RGBA", layers.size, "white")
        return Image.alpha_composite(white, layers).convert("RGB")
    return image.convert("RGB")


def _grey_to_8_bits(image: Image.Image, opens_16_bits_as_32: bool) -> Image.Image:
    """Grey of 16 bits ("I;16" and its byte orders), 32 bits ("I") or float ("F") to 8 bits."""
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16") or (image.mode == "I" and opens_16_bits_as_32):
        low, high = 0.0, 65535.0
    if high == low:  # one level, of an unknown range: any grey is as good
        return Image.new("L", image.size, 128)
    # 0 and 65535 are 0 and 255; a value in between goes to the nearest (257 of them to each).
    scaled = (values - low) * (255.0 / (high - low))
    return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))

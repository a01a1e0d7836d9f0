"""Where the network's crop lies in the photo it was cut from."""

from __future__ import annotations

from dataclasses import dataclass

#: (top, left, bottom, right), half-open, in pixels.
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class CropGeometry:
    """Resize to `resized_size`, then cut out `crop_size` at `top_left`; sizes are (height, width).

    A pixel is a square of side 1 with its corner at whole numbers, so that a box keeps its edges
    when it is scaled.

    Attributes:
        photo_size: of the upright photo, as `read_photo` gives it.
        resized_size: after resizing.
        top_left: (row, column) of the crop in the resized photo.
        crop_size: of the crop.
    """

    photo_size: tuple[int, int]
    resized_size: tuple[int, int]
    top_left: tuple[int, int]
    crop_size: tuple[int, int]

    @property
    def crop_box(self) -> Box:
        """The crop in pixels of the photo."""
        return self.to_photo((0, 0, *self.crop_size))

    def to_photo(self, box: Box) -> Box:
        """A box in pixels of the crop as a box in pixels of the upright photo."""
        vertical = self.photo_size[0] / self.resized_size[0]
        horizontal = self.photo_size[1] / self.resized_size[1]
        row, column = self.top_left
        top, left, bottom, right = box
        return (
            (top + row) * vertical,
            (left + column) * horizontal,
            (bottom + row) * vertical,
            (right + column) * horizontal,
        )


def centre_crop_geometry(
    photo_size: tuple[int, int], resize_size: int, crop_size: int
) -> CropGeometry:
    """Short side to `resize_size` with the aspect ratio kept, then the middle `crop_size` square.

    Rounds as torchvision does: the long side is truncated, the crop's corner rounded.

    Raises:
        ValueError: the photo has no pixels.
    """
    height, width = photo_size
    if height < 1 or width < 1:
        raise ValueError(f"a photo needs at least one pixel, got {height}x{width}")
    if height <= width:
        resized = (resize_size, max(resize_size, int(resize_size * width / height)))
    else:
        resized = (max(resize_size, int(resize_size * height / width)), resize_size)
    top_left = (round((resized[0] - crop_size) / 2), round((resized[1] - crop_size) / 2))
    return CropGeometry((height, width), resized, top_left, (crop_size, crop_size))

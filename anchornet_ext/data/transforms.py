"""From decoded photos to network inputs: the evaluation transform and the training augmentation.

Both work on uint8 tensors (3, H, W) whose memory is row, column, channel (a photo as it is
decoded): torch's uint8 resize is several times faster there than on floats or on planes. Only whole
batches become float, on the device that trains on them (`Preprocessing.normalise`).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from .crop_geometry import CropGeometry, centre_crop_geometry

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_INTERPOLATIONS = {
    "nearest": InterpolationMode.NEAREST,
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
}
#: Resized to a given short side, a photo needs memory in proportion to its aspect ratio: a file of
#: a few kilobytes, one pixel high, could ask for all there is.
MAX_ASPECT_RATIO = 200
AUGMENTATIONS = ("none", "randaugment", "trivialaugment")


def to_uint8_tensor(image: Image.Image) -> Tensor:
    """The pixels of a PIL image as uint8 (3, H, W), without moving them (memory stays H, W, 3)."""
    if image.mode != "RGB":
        image = image.convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@dataclass(frozen=True)
class Preprocessing:
    """How a photo becomes a network input; kept with a model so that inference repeats training.

    Attributes:
        resize_size: the short side, in pixels, after resizing; the aspect ratio is kept.
        crop_size: side of the square cut from the middle, in pixels; at most `resize_size`.
        interpolation: "nearest", "bilinear" or "bicubic".
        antialias: whether resizing down low-passes first.
        mean, std: of each channel, for values in [0, 1].

    Raises:
        ValueError: a size that is not positive, a crop larger than the resized image, an unknown
            interpolation, a mean or std that does not have three entries, or a std that is not
            positive.
    """

    resize_size: int = 256
    crop_size: int = 224
    interpolation: str = "bilinear"
    antialias: bool = True
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if self.resize_size < 1 or self.crop_size < 1:
            raise ValueError(
                "resize_size and crop_size must be positive, "
                f"not {self.resize_size} and {self.crop_size}"
            )
        if self.crop_size > self.resize_size:
            raise ValueError(
                f"crop_size {self.crop_size} is larger than resize_size {self.resize_size}"
            )
        if self.interpolation not in _INTERPOLATIONS:
            raise ValueError(
                f"interpolation {self.interpolation!r} is not one of {', '.join(_INTERPOLATIONS)}"
            )
        # JSON has lists only; the dataclass promises tuples.
        object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
        object.__setattr__(self, "std", tuple(float(value) for value in self.std))
        if len(self.mean) != 3 or len(self.std) != 3:
            raise ValueError(
                f"mean and std must have three entries each, not {self.mean} and {self.std}"
            )
        if not all(value > 0 for value in self.std):
            raise ValueError(f"std must be positive, not {self.std}")

    def to_dict(self) -> dict[str, Any]:
        """The attributes, ready for JSON."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`; keys that are left out take their defaults.

        Raises:
            ValueError: an unknown key, or a value that the constructor refuses.
        """
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(f"unknown preprocessing key(s): {', '.join(sorted(unknown))}")
        return cls(**values)

    def with_crop_size(self, crop_size: int) -> Preprocessing:
        """The same field of view at another resolution: resize_size scales with crop_size."""
        scaled = round(self.resize_size * crop_size / self.crop_size)
        return replace(self, crop_size=crop_size, resize_size=scaled)

    def crop(self, image: Tensor) -> Tensor:
        """Resizes the short side and cuts out the middle.

        Args:
            image: uint8 (3, H, W).

        Returns:
            uint8 (3, crop_size, crop_size).

        Raises:
            ValueError: the image is over MAX_ASPECT_RATIO times as long as it is short.
        """
        short, long = sorted(image.shape[-2:])
        if long > MAX_ASPECT_RATIO * short:
            raise ValueError(
                f"an image of {image.shape[-1]} x {image.shape[-2]} pixels is a line, not a photo"
            )
        geometry = self.geometry(image.shape[-2], image.shape[-1])
        resized = _resize(
            image, geometry.resized_size, _INTERPOLATIONS[self.interpolation], self.antialias
        )
        top, left = geometry.top_left
        return resized[:, top : top + self.crop_size, left : left + self.crop_size]

    def geometry(self, height: int, width: int) -> CropGeometry:
        """Where the crop lies in a photo of `height` x `width` pixels."""
        return centre_crop_geometry((height, width), self.resize_size, self.crop_size)

    def normalise(self, images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """(images / 255 - mean) / std for uint8 (or float in 0..255) images (..., 3, H, W)."""
        mean = images.new_tensor(self.mean, dtype=torch.float32).view(3, 1, 1) * 255
        scale = 1 / (images.new_tensor(self.std, dtype=torch.float32).view(3, 1, 1) * 255)
        floats = images.to(torch.float32, copy=True)  # in place from here: one temporary, not three
        return floats.sub_(mean).mul_(scale).to(dtype)

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        """One photo (PIL, or uint8 (3, H, W)) to a normalised float32 (3, crop_size, crop_size).

        Raises:
            TypeError: neither a PIL image nor a uint8 tensor of three channels.
        """
        if isinstance(image, Image.Image):
            image = to_uint8_tensor(image)
        if not isinstance(image, Tensor):
            raise TypeError(f"expected a PIL image or a uint8 tensor, got {type(image).__name__}")
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise TypeError(
                f"expected a uint8 tensor (3, H, W), got {image.dtype} {tuple(image.shape)}"
            )
        return self.normalise(self.crop(image)).contiguous()


def _resize(
    image: Tensor, size: tuple[int, int], interpolation: InterpolationMode, antialias: bool
) -> Tensor:
    if tuple(image.shape[-2:]) == size:
        return image
    resized: Tensor = F.resize(image, list(size), interpolation=interpolation, antialias=antialias)
    return resized


def random_crop_box(
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: random.Random,
) -> tuple[int, int, int, int]:
    """The box of RandomResizedCrop: (top, left, height, width) in pixels.

    The area is uniform in `scale` times the image's, the aspect ratio log-uniform in `ratio`; after
    ten boxes that do not fit, the largest centred one with an admissible aspect ratio.
    """
    log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(*log_ratio))
        box_width = round(math.sqrt(area * aspect))
        box_height = round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = rng.randint(0, height - box_height)
            left = rng.randint(0, width - box_width)
            return top, left, box_height, box_width
    aspect = min(max(width / height, ratio[0]), ratio[1])
    box_width = max(1, min(width, round(height * aspect)))
    box_height = max(1, min(height, round(width / aspect)))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


@dataclass(frozen=True)
class Augmentation:
    """What training does to a photo.

    Attributes:
        size: side of the square result, in pixels.
        scale: range of the crop's share of the photo's area, within (0, 1].
        ratio: range of the crop's width / height.
        pad: if not 0, the usual augmentation of small images instead of crops of random size: the
            photo is shrunk or enlarged until its short side is `size`, black pixels are put around
            it, so many on each side, and a square is cut out at a random place.
        flip: probability of mirroring left and right.
        policy: "none", "randaugment" or "trivialaugment" (torchvision's, on the resized crop).
        colour_jitter: strength of brightness, contrast, saturation and hue changes; 0 is off.
        erasing: probability of erasing a random box (filled with the mean colour).

    Raises:
        ValueError: a value out of its range.
    """

    size: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    pad: int = 0
    flip: float = 0.5
    policy: str = "none"
    colour_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    erasing: float = 0.0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be positive, not {self.size}")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"crop scale must be a range within (0, 1], not {self.scale}")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"crop ratio must be a range of positive numbers, not {self.ratio}")
        if not 0 <= self.pad <= self.size:
            raise ValueError(f"pad must be between 0 and the size of {self.size}, not {self.pad}")
        if not 0 <= self.flip <= 1 or not 0 <= self.erasing <= 1:
            raise ValueError(
                f"flip and erasing are probabilities, not {self.flip} and {self.erasing}"
            )
        if self.policy not in AUGMENTATIONS:
            raise ValueError(f"policy {self.policy!r} is not one of {', '.join(AUGMENTATIONS)}")
        if min(self.colour_jitter) < 0 or self.colour_jitter[3] > 0.5:
            raise ValueError(
                f"colour jitter must not be negative and its hue at most 0.5, "
                f"not {self.colour_jitter}"
            )


class TrainTransform:
    """The augmentation as a function of the photo and a seed, and of nothing else.

    No state and no hidden random stream: the same photo with the same seed gives the same result in
    any process, in any order. That is what makes a resumed run equal to an uninterrupted one.
    """

    def __init__(self, augmentation: Augmentation, fill: tuple[float, ...] = IMAGENET_MEAN) -> None:
        self.augmentation = augmentation
        steps: list[Any] = []
        if augmentation.policy == "randaugment":
            steps.append(v2.RandAugment())
        elif augmentation.policy == "trivialaugment":
            steps.append(v2.TrivialAugmentWide())
        if any(augmentation.colour_jitter):
            steps.append(v2.ColorJitter(*augmentation.colour_jitter))
        if augmentation.erasing > 0:
            colour = [round(255 * value) for value in fill]
            steps.append(v2.RandomErasing(augmentation.erasing, value=colour))
        self._steps = steps

    def __call__(self, image: Tensor, seed: str) -> Tensor:
        """uint8 (3, H, W) to uint8 (3, size, size)."""
        a = self.augmentation
        rng = random.Random(seed)  # a string is hashed by SHA-512: the same on every platform
        result = self._padded_crop(image, rng) if a.pad else self._resized_crop(image, rng)
        if rng.random() < a.flip:
            result = result.flip(-1)
        if self._steps:
            # torchvision draws from torch's global stream; leave that as it was.
            state = torch.get_rng_state()
            try:
                torch.default_generator.manual_seed(rng.getrandbits(63))
                for step in self._steps:
                    result = step(result)
            finally:
                torch.set_rng_state(state)
        return result

    def _resized_crop(self, image: Tensor, rng: random.Random) -> Tensor:
        a = self.augmentation
        top, left, height, width = random_crop_box(
            image.shape[-2], image.shape[-1], a.scale, a.ratio, rng
        )
        crop = image[:, top : top + height, left : left + width]
        # Cropping first makes the resize read only what it needs.
        return _resize(crop, (a.size, a.size), InterpolationMode.BILINEAR, antialias=True)

    def _padded_crop(self, image: Tensor, rng: random.Random) -> Tensor:
        size, pad = self.augmentation.size, self.augmentation.pad
        height, width = centre_crop_geometry(
            (image.shape[-2], image.shape[-1]), size, size
        ).resized_size
        image = _resize(image, (height, width), InterpolationMode.BILINEAR, antialias=True)
        # The corner in the photo without its frame.
        top = rng.randint(0, height + 2 * pad - size) - pad
        left = rng.randint(0, width + 2 * pad - size) - pad
        rows = slice(max(0, top), min(height, top + size))
        columns = slice(max(0, left), min(width, left + size))
        if rows.stop - rows.start == size == columns.stop - columns.start:
            return image[:, rows, columns]
        cut = image.new_zeros(size, size, len(image)).permute(2, 0, 1)  # in the photo's own order
        cut[:, rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = (
            image[:, rows, columns]
        )
        return cut

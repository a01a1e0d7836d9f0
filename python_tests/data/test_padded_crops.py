"""The augmentation of small images: a frame of black pixels, and a crop at a random place."""

from __future__ import annotations

import pytest
import torch

from anchornet_ext.data.transforms import Augmentation, TrainTransform


def test_crops_are_windows_of_the_framed_photo() -> None:
    photo = torch.randint(1, 256, (3, 32, 32), dtype=torch.uint8)
    framed = torch.zeros(3, 40, 40, dtype=torch.uint8)
    framed[:, 4:36, 4:36] = photo
    windows = {
        framed[:, top : top + 32, left : left + 32].numpy().tobytes(): (top, left)
        for top in range(9)
        for left in range(9)
    }
    transform = TrainTransform(Augmentation(size=32, pad=4, flip=0.0))
    found = [transform(photo, str(seed)) for seed in range(600)]
    places = {windows[crop.contiguous().numpy().tobytes()] for crop in found}
    assert len(places) == 81  # every place comes up
    assert torch.equal(transform(photo, "7"), found[7])
    mirrored = TrainTransform(Augmentation(size=32, pad=4, flip=1.0))
    assert torch.equal(mirrored(photo, "7"), found[7].flip(-1))


@pytest.mark.parametrize(("height", "width"), [(64, 96), (20, 33), (32, 32), (100, 40)])
def test_photos_of_any_size_fill_the_crop(height: int, width: int) -> None:
    photo = torch.full((3, height, width), 200, dtype=torch.uint8)
    transform = TrainTransform(Augmentation(size=32, pad=4))
    for seed in range(50):
        crop = transform(photo, str(seed))
        assert crop.shape == (3, 32, 32)
        assert ((crop == 0) | (crop == 200)).all()
        assert (crop == 200).float().mean() >= (28 / 32) ** 2


def test_a_frame_wider_than_the_crop_is_refused() -> None:
    with pytest.raises(ValueError, match="pad must be between 0 and the size of 32, not 33"):
        Augmentation(size=32, pad=33)

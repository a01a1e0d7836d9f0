"""The evaluation transform equals torchvision's; the augmentation is a function of its seed."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from anchornet_ext.data.transforms import (
    AUGMENTATIONS,
    Augmentation,
    Preprocessing,
    TrainTransform,
    random_crop_box,
    to_uint8_tensor,
)


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (97, 500), (64, 64), (1, 7)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_preprocessing_equals_torchvision(size: tuple[int, int], interpolation: str) -> None:
    image = photo(*size)
    preprocessing = Preprocessing(resize_size=73, crop_size=64, interpolation=interpolation)
    expected = v2.Compose(
        [
            v2.ToImage(),
            v2.Resize(73, interpolation=getattr(v2.InterpolationMode, interpolation.upper())),
            v2.CenterCrop(64),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )(image)
    # One grey level: torch's uint8 resize rounds differently by memory layout.
    torch.testing.assert_close(preprocessing(image), expected, rtol=0, atol=1.01 / 255 / 0.224)
    assert (preprocessing(image) - expected).abs().mean() < 0.1 / 255


def test_preprocessing_takes_an_image_or_its_tensor() -> None:
    image = photo(40, 30)
    preprocessing = Preprocessing(resize_size=20, crop_size=16)
    assert torch.equal(preprocessing(image), preprocessing(to_uint8_tensor(image)))
    grey = image.convert("L")
    assert preprocessing(grey).shape == (3, 16, 16)
    with pytest.raises(TypeError, match="float32"):
        preprocessing(torch.zeros(3, 30, 40))
    with pytest.raises(TypeError, match="str"):
        preprocessing("photo.jpg")  # type: ignore[arg-type]


def test_a_line_is_not_a_photo() -> None:
    with pytest.raises(ValueError, match="10001 x 50"):
        Preprocessing()(torch.zeros(3, 50, 10001, dtype=torch.uint8))


def test_normalise_is_per_channel_and_leaves_its_input() -> None:
    preprocessing = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    images = torch.full((2, 3, 4, 4), 51.0)
    out = preprocessing.normalise(images)
    expected = torch.tensor([(0.2 - 0.1) / 0.5, 0.0, (0.2 - 0.3) / 2.0]).view(1, 3, 1, 1)
    torch.testing.assert_close(out, expected.expand(2, 3, 4, 4), rtol=0, atol=1e-6)
    assert images.eq(51).all()


def test_preprocessing_round_trips_through_json() -> None:
    preprocessing = Preprocessing(resize_size=100, crop_size=80, interpolation="bicubic")
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing
    with pytest.raises(ValueError, match="resise"):
        Preprocessing.from_dict({"resise": 3})


def test_another_resolution_keeps_the_field_of_view() -> None:
    preprocessing = Preprocessing().with_crop_size(112)
    assert (preprocessing.resize_size, preprocessing.crop_size) == (128, 112)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"resize_size": 0}, "0"),
        ({"resize_size": 100}, "crop_size 224 is larger than resize_size 100"),
        ({"interpolation": "area"}, "'area'"),
        ({"mean": (0.5, 0.5)}, r"\(0.5, 0.5\)"),
        ({"std": (1.0, 0.0, 1.0)}, "0.0"),
    ],
)
def test_preprocessing_refuses(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing(**values)  # type: ignore[arg-type]


@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    scale=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted).map(tuple),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=200, deadline=None)
def test_crop_boxes_lie_in_the_image(
    height: int, width: int, scale: tuple[float, float], seed: int
) -> None:
    top, left, h, w = random_crop_box(height, width, scale, (3 / 4, 4 / 3), random.Random(seed))
    assert h > 0
    assert w > 0
    assert top >= 0
    assert left >= 0
    assert top + h <= height
    assert left + w <= width


def test_crop_boxes_have_the_asked_area_and_ratio() -> None:
    rng = random.Random(0)
    boxes = [random_crop_box(400, 400, (0.2, 0.5), (0.5, 2.0), rng) for _ in range(500)]
    areas = torch.tensor([h * w / 160000 for _, _, h, w in boxes])
    ratios = torch.tensor([w / h for _, _, h, w in boxes])
    assert areas.min() > 0.195
    assert areas.max() < 0.505
    assert abs(areas.mean() - 0.35) < 0.02  # uniform in between
    assert ratios.min() > 0.49
    assert ratios.max() < 2.02
    assert abs(ratios.log().mean()) < 0.06


@pytest.mark.parametrize("policy", AUGMENTATIONS)
def test_augmentation_is_a_function_of_the_seed(policy: str) -> None:
    transform = TrainTransform(
        Augmentation(size=32, policy=policy, colour_jitter=(0.4, 0.4, 0.4, 0.1), erasing=0.5)
    )
    image = to_uint8_tensor(photo(60, 45))
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = [transform(image, f"{seed}") for seed in range(6)]
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(10)
    again = [transform(image, f"{seed}") for seed in reversed(range(6))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert all(a.dtype == torch.uint8 and a.shape == (3, 32, 32) for a in first)


def test_the_whole_image_unflipped_is_a_resize() -> None:
    transform = TrainTransform(Augmentation(size=32, scale=(1, 1), ratio=(1, 1), flip=0))
    image = to_uint8_tensor(photo(32, 32))
    assert torch.equal(transform(image, "any"), image)
    mirrored = TrainTransform(Augmentation(size=32, scale=(1, 1), ratio=(1, 1), flip=1))
    assert torch.equal(mirrored(image, "any"), image.flip(-1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": 0}, "0"),
        ({"scale": (0.0, 1.0)}, r"\(0.0, 1.0\)"),
        ({"scale": (0.5, 0.2)}, r"\(0.5, 0.2\)"),
        ({"ratio": (2.0, 1.0)}, r"\(2.0, 1.0\)"),
        ({"flip": 1.5}, "1.5"),
        ({"policy": "autoaugment"}, "'autoaugment'"),
        ({"colour_jitter": (0.0, 0.0, 0.0, 0.7)}, "0.7"),
    ],
)
def test_augmentation_refuses(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Augmentation(**values)  # type: ignore[arg-type]

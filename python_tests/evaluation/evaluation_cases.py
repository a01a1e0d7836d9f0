"""A tiny model and a handful of photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from anchornet_ext.data.transforms import Preprocessing
from anchornet_ext.inference import TwoStageClassifier
from anchornet_ext.models import AnchorNet, build_backbone

BACKBONE = "squeezenet1_1"
NAMES = ("ant", "bee", "cat", "dog")
SIDE = 112


def save_model(folder: Path, seed: int = 3, **options: object) -> None:
    """A classifier of `NAMES` with random weights, whose confidences are spread out."""
    torch.manual_seed(seed)
    networks = [build_backbone(BACKBONE, len(NAMES)) for _ in range(2)]
    for network in networks:
        network.classifier[1].weight.data.mul_(15)
    settings = {
        "class_names": NAMES,
        "preprocessing": Preprocessing(120, SIDE),
        "num_patches": 2,
        "glance_name": BACKBONE,
        "focus_name": BACKBONE,
    }
    TwoStageClassifier(AnchorNet(len(NAMES)), *networks, **settings | options).save_pretrained(
        folder
    )


def save_photos(folder: Path, counts: dict[str, int]) -> None:
    """FOLDER/CLASS/0.png, ...: coarse noise, each of another size."""
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            values = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
            size = (130 + 9 * i, 121 + 4 * i)
            photo = Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)
            photo.save(folder / name / f"{i}.png")

"""Exit tables for the tests of the policies: drawn by hypothesis, and the published one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from anchornet_ext.policy.exit_table import ExitTable

PUBLISHED = Path(__file__).parents[1] / "golden" / "densenet201_imagenet_val_exits.npz"

#: (rho_1, rho_2) of the paper's operating points, with rho_3 = rho_4 = 0.9, and what it prints for
#: them: top-1 in percent and GMACs.
PUBLISHED_POINTS = (
    ((0.15, 0.55), 70.76, 0.83),
    ((0.30, 0.50), 71.89, 0.96),
    ((0.40, 0.60), 72.78, 1.09),
    ((0.50, 0.70), 73.74, 1.25),
    ((0.60, 0.75), 74.52, 1.40),
    ((0.70, 0.80), 74.88, 1.54),
    ((0.80, 0.85), 75.04, 1.68),
    ((0.95, 0.90), 75.14, 1.92),
)


def published_cost(anchor: float, exits: int = 5) -> list[float]:
    """GMACs of exit 1, ..., T: 0.79 for DenseNet-201 at 95 pixels, `anchor` for AnchorNet."""
    return [0.79, *(anchor + step * 0.79 for step in range(2, exits + 1))]


def random_table(
    seed: int, images: int, exits: int, *, classes: int = 7, levels: int = 0, full: bool = True
) -> ExitTable:
    """A table that agrees with itself.

    Args:
        levels: draw the confidences from this many values, so that many are equal; 0: any float.
        full: with everything a table can have; else only what a published one has, and costs.
    """
    rng = np.random.default_rng(seed)
    confidence = rng.random((images, exits), np.float32)
    if levels:
        confidence = np.floor(confidence * levels).astype(np.float32) / np.float32(max(1, levels))
    prediction = rng.integers(0, classes, (images, exits), np.int32)
    label = rng.integers(0, classes, images, np.int32)
    correct = prediction == label[:, None]
    cost = np.cumsum(rng.uniform(0.1, 2.0, exits)) * 1e9
    if not full:
        return ExitTable(confidence, correct, cost)
    grid = np.array([0.5, 1.0, 2.0])
    power = confidence[None] ** (1 / grid[:, None, None]).astype(np.float32)
    power[1] = confidence
    optional: dict[str, Any] = {
        "prediction": prediction,
        "label": label,
        "top5": correct | (rng.random(correct.shape) < 0.5),
        "milliseconds": np.cumsum(rng.uniform(0.1, 2.0, exits)),
        "temperatures": grid,
        "scaled_confidence": power,
        "scaled_nll": rng.exponential(size=(3, images, exits)).astype(np.float32),
        "image_ids": np.array([f"class/{i}é.jpg".encode() for i in range(images)]),
        "metadata": {"system": "random", "class_names": [f"c{i}é" for i in range(classes)]},
    }
    return ExitTable(confidence, correct, cost, **optional)


@st.composite
def exit_tables(draw: st.DrawFn, max_images: int = 30, max_exits: int = 5) -> ExitTable:
    """Tables of every size, with and without equal confidences and optional arrays."""
    return random_table(
        draw(st.integers(0, 2**32 - 1)),
        draw(st.integers(1, max_images)),
        draw(st.integers(1, max_exits)),
        levels=draw(st.sampled_from([0, 1, 3])),
        full=draw(st.booleans()),
    )

"""Exit tables of a system that adds up evidence, with as much of it and as loud as a test wants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from anchornet_ext.policy.exit_table import ExitTable

GRID = 2.0 ** np.arange(-2, 3)  # 1/4 to 4
CLASSES = 6


def synthetic_table(
    num_images: int = 400,
    seed: int = 0,
    *,
    evidence: Sequence[float] = (1.0, 1.0, 1.0),
    loudness: Sequence[float] = (1.0, 1.0, 1.0),
    **options: Any,
) -> ExitTable:
    """N images, T exits, six classes.

    Args:
        evidence: what exit t adds to the label's logit on average; the noise has a deviation of 1.
        loudness: by what the logits of exit t are multiplied, which changes no prediction.
        options: of `ExitTable`.
    """
    random = np.random.default_rng(seed)
    label = random.integers(0, CLASSES, num_images).astype(np.int32)
    images = np.arange(num_images)
    total = np.zeros((num_images, CLASSES))
    logits = []  # (T) of (N, n)
    ease = random.gamma(1.5, 1.0, num_images)  # easy and hard images
    for strength, factor in zip(evidence, loudness, strict=True):
        total = total + random.normal(size=total.shape)
        total[images, label] += strength * ease
        logits.append(total * factor)
    scaled = np.array(logits)[None] / GRID[:, None, None, None]  # (G, T, N, n)
    scaled -= scaled.max(axis=-1, keepdims=True)
    probability = np.exp(scaled) / np.exp(scaled).sum(axis=-1, keepdims=True)
    scaled_confidence = probability.max(axis=-1).transpose(0, 2, 1).astype(np.float32)
    nll = -np.log(probability[:, :, images, label]).transpose(0, 2, 1)
    prediction = np.array(logits).argmax(axis=-1).T.astype(np.int32)
    exits = len(logits)
    arrays = {
        "confidence": scaled_confidence[GRID.tolist().index(1.0)].copy(),
        "correct": prediction == label[:, None],
        "prediction": prediction,
        "label": label,
        "cost": np.arange(1, exits + 1) * 1e9,
        "temperatures": GRID,
        "scaled_confidence": np.ascontiguousarray(scaled_confidence),
        "scaled_nll": np.maximum(nll, 0).astype(np.float32),
    }
    return ExitTable(**(arrays | options))


WITHOUT_GRID: dict[str, Any] = {
    "temperatures": None,
    "scaled_confidence": None,
    "scaled_nll": None,
}

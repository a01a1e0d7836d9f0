"""From photos to predictions: one plain record for each photo, with nothing of tensors in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from anchornet_ext.data.crop_geometry import Box, CropGeometry
from anchornet_ext.models.localise import localise

from .overlay import Explanation, Look
from .stream import ImageClassification
from .two_stage import TwoStageClassifier


@dataclass(frozen=True)
class Candidate:
    """A class with its probability."""

    index: int
    label: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What is known of one photo.

    Attributes:
        top: the most probable classes of the answer, best first; at least one.
        looks: the inputs that were used, the glance first, with class and confidence after each.
        answer_step: after which of these inputs, from 1, the answer was found: the last unless the
            policy takes the surest.
        num_exits: T, how many inputs there could have been.
        macs, full_macs: multiply-adds that it cost, and that the last exit costs.
        crop: the network's crop, uint8 (H, W, 3).
        activation_map: AnchorNet's map (h, w); None where it was not computed.
        map_label: the class of that map.
    """

    top: tuple[Candidate, ...]
    looks: tuple[Look, ...]
    answer_step: int
    num_exits: int
    macs: int
    full_macs: int
    crop: NDArray[np.uint8]
    activation_map: NDArray[np.float64] | None
    map_label: str | None

    @property
    def exit_step(self) -> int:
        """The number of inputs used."""
        return len(self.looks)

    @property
    def confidence(self) -> float:
        """That of the answer."""
        return self.looks[self.answer_step - 1].confidence


def prediction_of(
    model: TwoStageClassifier,
    crop: Tensor,
    found: ImageClassification,
    *,
    top: int = 1,
    extra_map: bool = False,
) -> Prediction:
    """The record of one photo.

    Args:
        model: whose names and sizes hold.
        crop: uint8 (3, H, W), as `Preprocessing.crop` gives it.
        found: what the model says of it.
        top: how many classes to report.
        extra_map: compute the activation map also for a photo that left at the glance, to show it.
            Its cost is not counted, as nothing was decided by it.
    """
    size = model.patch_size
    boxes: list[Box | None] = [None]
    corners = found.top_left[: found.exit_step - 1].tolist()
    boxes += ((row, column, row + size, column + size) for row, column in corners)
    looks = zip(found.step_label.tolist(), found.confidence.tolist(), boxes, strict=False)
    activation_map, map_class = found.activation_map, found.anchor_label
    if activation_map is None and extra_map:
        # Of the class that was predicted: this map explains, it decides nothing.
        activation_map, map_class = _map_of(model, crop, found.label), found.label
    return Prediction(
        top=tuple(
            Candidate(index, class_label(model, index), float(found.probabilities[index]))
            for index in _ranking(found, top)
        ),
        looks=tuple(
            Look(class_label(model, label), confidence, box) for label, confidence, box in looks
        ),
        answer_step=found.answer_step,
        num_exits=model.num_exits,
        macs=found.macs,
        full_macs=found.full_macs,
        crop=crop.permute(1, 2, 0).numpy(),
        activation_map=None if activation_map is None else activation_map.double().numpy(),
        map_label=None if map_class is None else class_label(model, map_class),
    )


def class_label(model: TwoStageClassifier, index: int) -> str:
    """A class's name, or its number where the model has no names."""
    return f"class {index}" if model.class_names is None else model.class_names[index]


def explain(
    name: str,
    photo: Image.Image,
    geometry: CropGeometry,
    prediction: Prediction,
    model: TwoStageClassifier,
) -> Explanation:
    """What `draw_overlay` needs to show a prediction."""
    return Explanation(
        name=name,
        photo=photo,
        geometry=geometry,
        crop=Image.fromarray(prediction.crop),
        looks=prediction.looks,
        num_exits=prediction.num_exits,
        glance_size=model.glance_size,
        macs=prediction.macs,
        full_macs=prediction.full_macs,
        activation_map=prediction.activation_map,
        map_label=prediction.map_label,
        map_needed=prediction.exit_step > 1,
        patch_size=model.patch_size,
        stride=model.anchor.stride,
        answer_step=prediction.answer_step,
    )


def _ranking(found: ImageClassification, top: int) -> list[int]:
    """The `top` most probable classes, the predicted one first.

    Sums of logits that differ can have equal probabilities in float32, so that the order of the
    probabilities alone could contradict the prediction.
    """
    score = found.probabilities.clone()
    score[found.label] = torch.inf
    best: list[int] = score.argsort(descending=True, stable=True)[:top].tolist()
    return best


def _map_of(model: TwoStageClassifier, crop: Tensor, label: int) -> Tensor:
    """AnchorNet's map (h, w) of one class, on the CPU."""
    parameter = next(model.parameters())
    image = model.preprocessing.normalise(crop[None].to(parameter.device), parameter.dtype)
    with torch.no_grad():
        found = localise(model.anchor, image, num_patches=1, class_index=label)
    return found.activation_map[0].cpu()

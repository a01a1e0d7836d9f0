"""From photos to predictions: one plain record for each photo, with nothing of tensors in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from anchornet_ext.data.crop_geometry import Box, CropGeometry
from anchornet_ext.models.localise import localise
from anchornet_ext.policy.exit_policy import ExitPolicy

from .early_exit import Classification
from .overlay import Explanation, Look
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


def predict_batch(
    model: TwoStageClassifier,
    crops: Sequence[Tensor],
    *,
    thresholds: Sequence[float] | None = None,
    exit_at: int | None = None,
    policy: ExitPolicy | None = None,
    top: int = 1,
    extra_map: bool = False,
) -> list[Prediction]:
    """Classifies the crops of photos together.

    Args:
        model: in which everything is set; its device is used.
        crops: uint8 (3, H, W) of one size, as `Preprocessing.crop` gives them.
        thresholds, exit_at, policy: see `early_exit.classify`.
        top: how many classes to report.
        extra_map: compute the activation map also for photos that left at the glance, to show it.
            Its cost is not counted, as nothing was decided by it.
    """
    if not crops:
        return []
    device = next(model.parameters()).device
    images = model.preprocessing.normalise(torch.stack(list(crops)).to(device))  # (B, 3, H, W)
    found = model.classify(images, thresholds, exit_at, policy=policy)
    maps, map_classes = _maps(model, images, found, extra_map)
    # One transfer for each tensor instead of one for each number.
    steps, answer_steps = found.exit_step.tolist(), found.answer_step.tolist()
    confidence, step_label = found.confidence.tolist(), found.step_label.tolist()
    top_left, macs = found.top_left.tolist(), found.macs.tolist()
    best = _ranking(found, top)
    best_index, best_probability = best.tolist(), found.probabilities.gather(1, best).tolist()
    size = model.patch_size
    predictions = []
    for b, used in enumerate(steps):
        boxes: list[Box | None] = [None]
        boxes += ((r, c, r + size, c + size) for r, c in top_left[b][: used - 1])
        looks = tuple(
            Look(class_label(model, step_label[b][step]), confidence[b][step], boxes[step])
            for step in range(used)
        )
        candidates = tuple(
            Candidate(index, class_label(model, index), probability)
            for index, probability in zip(best_index[b], best_probability[b], strict=True)
        )
        predictions.append(
            Prediction(
                top=candidates,
                looks=looks,
                answer_step=answer_steps[b],
                num_exits=model.num_exits,
                macs=macs[b],
                full_macs=found.full_macs,
                crop=crops[b].permute(1, 2, 0).numpy(),
                activation_map=maps.get(b),
                map_label=class_label(model, map_classes[b]) if b in maps else None,
            )
        )
    return predictions


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


def _ranking(found: Classification, top: int) -> Tensor:
    """The `top` most probable classes (B, k), the predicted one first.

    Sums of logits that differ can have equal probabilities in float32, so that the order of the
    probabilities alone could contradict the prediction.
    """
    score = found.probabilities.scatter(1, found.label[:, None], torch.inf)
    return score.argsort(dim=1, descending=True, stable=True)[:, :top]


def _maps(
    model: TwoStageClassifier, images: Tensor, found: Classification, extra_map: bool
) -> tuple[dict[int, NDArray[np.float64]], dict[int, int]]:
    """The activation maps that there are, and their classes, by the photo's place in the batch."""
    places = found.anchor_ran.tolist()
    maps = dict(zip(places, found.activation_map.double().cpu().numpy(), strict=True))
    labels = found.anchor_label.tolist()
    classes = {place: labels[place] for place in places}
    without = [place for place in range(len(images)) if place not in maps]
    if extra_map and without:
        with torch.no_grad():
            # The class that was predicted: this map explains, it decides nothing.
            extra = localise(
                model.anchor, images[without], num_patches=1, class_index=found.label[without]
            )
        maps.update(zip(without, extra.activation_map.double().cpu().numpy(), strict=True))
        predicted = found.label.tolist()
        classes.update({place: predicted[place] for place in without})
    return maps, classes

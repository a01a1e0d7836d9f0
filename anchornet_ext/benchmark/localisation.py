"""Suite `localisation`: where to look, as a whole and in its parts.

"plain" is AnchorNet as it was trained (NCHW, batch norm, the 512-channel map), the activation map
by einsum, the suppression as a loop in Python and the patches as slices. "folded" is the folded
network through its submodules in channels_last, with this package's operators after it; "fused" is
what `localise` does: the same with `ops.mbconv_chain` (on a CUDA device the two are one).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from anchornet_ext import ops
from anchornet_ext.models import AnchorNet, FoldedAnchorNet, localise
from anchornet_ext.models.macs import count_macs

from .harness import Case, Contenders, Options, Row, Work, measure_case
from .networks import realistic_anchor

NAME = "localisation"
SUMMARY = "where to look, whole and in parts, against plain PyTorch and the floor"

NUM_PATCHES, THRESHOLD = 4, 0.3
PATCH_SIZE, STRIDE = AnchorNet.patch_size, AnchorNet.stride


def plain_network(anchor: AnchorNet, images: Tensor) -> tuple[Tensor, Tensor]:
    """The 512-channel map and the logits."""
    expanded: Tensor = anchor.expansion(anchor.features(images))
    return expanded, anchor.classifier(expanded.mean(dim=(2, 3)))


def plain_map(anchor: AnchorNet, expanded: Tensor, classes: Tensor) -> Tensor:
    return torch.einsum("bc,bchw->bhw", anchor.classifier.weight[classes], expanded)


def overlap(a: tuple[int, int], b: tuple[int, int]) -> float:
    """Intersection over union of the patches at two cells."""
    rows, columns = (max(0, PATCH_SIZE - abs(i - j) * STRIDE) for i, j in zip(a, b, strict=True))
    both = rows * columns
    return both / (2 * PATCH_SIZE**2 - both)


def plain_select(activation_map: Tensor) -> list[list[tuple[int, int]]]:
    """The cells of each image, greedily: section 3.3 as one writes it in Python."""
    width = activation_map.shape[2]
    orders = activation_map.flatten(1).argsort(dim=1, descending=True)
    chosen = []
    for order in orders.tolist():
        taken: list[tuple[int, int]] = []
        for cell in order:
            place = divmod(cell, width)
            if not any(overlap(place, other) >= THRESHOLD for other in taken):
                taken.append(place)
                if len(taken) == NUM_PATCHES:
                    break
        while len(taken) < NUM_PATCHES:  # small images: the places that overlap least
            others = [divmod(cell, width) for cell in order]
            taken.append(
                min(
                    (place for place in others if place not in taken),
                    key=lambda place: max(overlap(place, other) for other in taken),
                )
            )
        chosen.append(taken)
    return chosen


def plain_gather(images: Tensor, chosen: list[list[tuple[int, int]]]) -> Tensor:
    return torch.stack(
        [
            image[:, STRIDE * r : STRIDE * r + PATCH_SIZE, STRIDE * c : STRIDE * c + PATCH_SIZE]
            for image, places in zip(images, chosen, strict=True)
            for r, c in places
        ]
    )


def plain_localise(anchor: AnchorNet, images: Tensor) -> Tensor:
    expanded, logits = plain_network(anchor, images)
    activation_map = plain_map(anchor, expanded, logits.argmax(dim=1))
    return plain_gather(images, plain_select(activation_map))


def our_localise(anchor: FoldedAnchorNet, images: Tensor) -> Tensor:
    found = localise(anchor, images, NUM_PATCHES, THRESHOLD)
    return ops.gather_patches(images, found.selection.top_left, PATCH_SIZE)


class Inputs:
    """The networks and what goes in and comes out of every part, for one batch."""

    def __init__(self, batch: int, size: int, device: torch.device) -> None:
        self.plain = realistic_anchor(device)
        self.folded, self.fused = self.plain.fold(), self.plain.fold()
        self.folded.fused = False
        self.images = torch.randn(batch, 3, size, size, device=device)
        self.last = self.images.contiguous(memory_format=torch.channels_last)
        self.expanded, logits = plain_network(self.plain, self.images)
        self.classes = logits.argmax(dim=1)
        self.features = self.fused.features(self.images)
        self.map = ops.class_activation_map(self.features, self.fused.class_weight, self.classes)
        self.chosen = plain_select(self.map)
        self.top_left = ops.select_patches(
            self.map, NUM_PATCHES, PATCH_SIZE, STRIDE, THRESHOLD
        ).top_left


def whole(inputs: Inputs) -> Contenders:
    return {
        "plain": lambda: plain_localise(inputs.plain, inputs.images),
        "folded": lambda: our_localise(inputs.folded, inputs.last),
        "fused": lambda: our_localise(inputs.fused, inputs.images),
        "fused, channels_last": lambda: our_localise(inputs.fused, inputs.last),
    }


def network(inputs: Inputs) -> Contenders:
    return {
        "plain": lambda: plain_network(inputs.plain, inputs.images),
        "folded": lambda: inputs.folded(inputs.last),
        "fused": lambda: inputs.fused(inputs.images),
        "fused, channels_last": lambda: inputs.fused(inputs.last),
    }


def activation_map(inputs: Inputs) -> Contenders:
    weight = inputs.fused.class_weight
    return {
        "plain": lambda: plain_map(inputs.plain, inputs.expanded, inputs.classes),
        "fused": lambda: ops.class_activation_map(inputs.features, weight, inputs.classes),
    }


def selection(inputs: Inputs) -> Contenders:
    return {
        "plain": lambda: plain_select(inputs.map),
        "fused": lambda: ops.select_patches(inputs.map, NUM_PATCHES, PATCH_SIZE, STRIDE, THRESHOLD),
    }


def gather(inputs: Inputs) -> Contenders:
    return {
        "plain": lambda: plain_gather(inputs.images, inputs.chosen),
        "fused": lambda: ops.gather_patches(inputs.images, inputs.top_left, PATCH_SIZE),
        "fused, channels_last": lambda: ops.gather_patches(
            inputs.last, inputs.top_left, PATCH_SIZE
        ),
    }


@dataclass(frozen=True)
class Part:
    """Contenders for a part of localising, and the work of one image in float32."""

    contenders: Callable[[Inputs], Contenders]
    macs: int
    read: int
    written: int


def parts(size: int) -> dict[str, Part]:
    """Name -> part, for square images of `size` pixels."""
    with torch.device("meta"):
        folded = FoldedAnchorNet()
    macs = count_macs(folded, (3, size, size))
    image, patches = 3 * size**2 * 4, NUM_PATCHES * 3 * PATCH_SIZE**2 * 4
    cells = ((size - PATCH_SIZE) // STRIDE + 1) ** 2
    return {
        "whole": Part(whole, macs, image + patches, patches),
        "network": Part(network, macs, image, 0),
        "map": Part(activation_map, 0, folded.feature_channels * cells * 4, 0),
        "selection": Part(selection, 0, cells * 4, 0),
        "gather": Part(gather, 0, patches, patches),
    }


def check(options: Options) -> None:
    """
    Raises:
        ValueError: a size has no room for the patches.
    """
    smallest = PATCH_SIZE + STRIDE  # 2 x 2 locations, for four patches
    for size in options.sizes or ():
        if size < smallest:
            raise ValueError(f"--sizes {size}: four patches need {smallest} pixels at least")


def measure(options: Options) -> Iterator[Row]:
    """The rows of all batches and sizes, in float32."""
    if options.dtypes is not None and torch.float32 not in options.dtypes:
        return
    for size in options.sizes or ((128,) if options.quick else (224,)):
        for batch in options.batches or ((2,) if options.quick else (1, 32)):
            for case in cases(batch, size, options.device):
                yield from measure_case(case, options)


def cases(batch: int, size: int, device: torch.device) -> Iterator[Case]:
    """One for each part."""
    for name, part in parts(size).items():
        yield Case(
            suite=NAME,
            settings={"part": name, "batch": batch, "size": size, "dtype": "float32"},
            build=partial(_build, part, batch, size, device),
            batch=batch,
            work=Work(part.read * batch, part.written * batch, part.macs * batch),
            facts={"macs": part.macs},
            over=("plain",),
            sample=2e-2,
        )


def _build(part: Part, batch: int, size: int, device: torch.device) -> Contenders:
    return part.contenders(Inputs(batch, size, device))

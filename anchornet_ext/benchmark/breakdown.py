"""Suite `breakdown`: where an image's time goes, before and after.

Every part of Algorithm 1 as one writes it in plain PyTorch ("before": networks as they were trained
in NCHW, `interpolate`, einsum, a loop in Python for the suppression, slices for the patches,
softmax and boolean indexing for the exits) and as this package does it ("after"). Parts that an
image meets at every patch are timed once; `times` says how often it meets them on its way to the
last exit, and the shares at the end of the table are of all of it. "whole" is Algorithm 1 to the
last exit in one piece: what it takes more than its parts is what holds them together.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from anchornet_ext import ops
from anchornet_ext.inference import TwoStageClassifier
from anchornet_ext.inference.exit_rules import exit_rules
from anchornet_ext.inference.exit_state import RunningSums
from anchornet_ext.models import AnchorNet, count_macs

from .end_to_end import check as check
from .harness import Case, Contenders, Options, Row, measure_case
from .localisation import (
    NUM_PATCHES,
    PATCH_SIZE,
    STRIDE,
    THRESHOLD,
    plain_gather,
    plain_map,
    plain_network,
    plain_select,
)
from .networks import random_classifier

NAME = "breakdown"
SUMMARY = "where an image's time goes, in plain PyTorch and here"

BACKBONE = "resnet50"
#: Part -> how often an image meets it on its way to the last exit.
PARTS = {
    "resize": 1,
    "glance": 1,
    "AnchorNet": 1,
    "map": 1,
    "selection": 1,
    "gather": NUM_PATCHES,
    "focus": NUM_PATCHES,
    "exits": NUM_PATCHES + 1,
}
WHOLE = "whole"


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """It has none of its own."""


def measure(options: Options) -> Iterator[Row]:
    """The rows of all backbones, sizes, batches and parts, in float32."""
    if options.dtypes is not None and torch.float32 not in options.dtypes:
        return
    usual = "mobilenet_v3_small" if options.quick else BACKBONE
    for backbone in options.backbones or (usual,):
        model = random_classifier(backbone).to(options.device)
        for size in options.sizes or ((112,) if options.quick else (224,)):
            macs = _macs(model, size)
            for batch in options.batches or ((2,) if options.quick else (1, 32)):
                torch.manual_seed(0)
                inputs = Inputs(model, batch, size, options.device)
                for part, calls in inputs.parts().items():
                    case = Case(
                        suite=NAME,
                        settings={
                            "part": part,
                            "backbone": backbone,
                            "batch": batch,
                            "size": size,
                        },
                        build=partial(dict, calls),
                        batch=batch,
                        over=("before",),
                        facts={"times": PARTS.get(part, 1), "macs": macs.get(part, 0)},
                        sample=2e-2,
                        rounds=7,
                        mode=torch.no_grad,
                    )
                    yield from measure_case(case, options)


def _macs(model: TwoStageClassifier, size: int) -> dict[str, int]:
    """Of one meeting."""
    seen = (3, model.glance_size, model.glance_size)
    return {
        "glance": count_macs(model.glance, seen),
        "AnchorNet": count_macs(model.fold().anchor, (3, size, size)),
        "focus": count_macs(model.focus, (3, PATCH_SIZE, PATCH_SIZE)),
    }


class Inputs:
    """What goes into every part, for one batch."""

    def __init__(
        self, model: TwoStageClassifier, batch: int, size: int, device: torch.device
    ) -> None:
        self.before, self.after = model, model.tuned()
        self.anchor = _trained_anchor(model)
        self.images = torch.randn(batch, 3, size, size, device=device)
        self.last = self.images.contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            self.small = _resized(self.images, model.glance_size)
            self.small_last = self.small.contiguous(memory_format=torch.channels_last)
            self.expanded, logits = plain_network(self.anchor, self.images)
            self.classes = logits.argmax(dim=1)
            self.features = self.after.anchor.features(self.last)
            self.map = ops.class_activation_map(
                self.features, self.after.anchor.class_weight, self.classes
            )
            self.chosen = plain_select(self.map)
            selection = ops.select_patches(self.map, NUM_PATCHES, PATCH_SIZE, STRIDE, THRESHOLD)
            self.top_left = selection.top_left[:, 0].contiguous()
            self.rows = torch.arange(batch, device=device)
            self.patches = plain_gather(self.images, [places[:1] for places in self.chosen])
            self.patches_last = self.patches.contiguous(memory_format=torch.channels_last)
            self.logits = self.before.focus(self.patches)

    def parts(self) -> dict[str, Contenders]:
        """Part -> its contenders."""
        before, after = self.before, self.after
        first = [places[:1] for places in self.chosen]
        weight = after.anchor.class_weight
        pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "resize": (
                lambda: _resized(self.images, before.glance_size),
                lambda: after.glance_input(self.last),
            ),
            "glance": (
                lambda: before.glance(self.small),
                lambda: after.glance(self.small_last),
            ),
            "AnchorNet": (
                lambda: plain_network(self.anchor, self.images),
                lambda: after.anchor.logits(after.anchor.features(self.last)),
            ),
            "map": (
                lambda: plain_map(self.anchor, self.expanded, self.classes),
                lambda: ops.class_activation_map(self.features, weight, self.classes),
            ),
            "selection": (
                lambda: plain_select(self.map),
                lambda: ops.select_patches(self.map, NUM_PATCHES, PATCH_SIZE, STRIDE, THRESHOLD),
            ),
            "gather": (
                lambda: plain_gather(self.images, first),
                lambda: ops.gather_patches(
                    self.last,
                    self.top_left,
                    PATCH_SIZE,
                    image_index=self.rows,
                    memory_format=torch.channels_last,
                ),
            ),
            "focus": (
                lambda: before.focus(self.patches),
                lambda: after.focus(self.patches_last),
            ),
            "exits": (self._plain_exit, self._exit()),
            WHOLE: (
                lambda: plain_algorithm(before, self.images),
                lambda: after.classify(self.last, exit_at=after.num_exits),
            ),
        }
        return {name: {"before": plain, "after": ours} for name, (plain, ours) in pairs.items()}

    def _plain_exit(self) -> Tensor:
        return plain_exit(self.logits, self.logits, self.rows, 2.0)[1]

    def _exit(self) -> Callable[[], object]:
        rules = exit_rules(self.after, NUM_PATCHES, exit_at=NUM_PATCHES + 1)
        sums = RunningSums(
            len(self.rows), self.after.num_classes, rules, torch.float32, self.images.device
        )
        return lambda: sums.add(self.rows, self.logits, 2)


def _trained_anchor(model: TwoStageClassifier) -> AnchorNet:
    """As it was trained, not folded."""
    assert isinstance(model.anchor, AnchorNet)
    return model.anchor


def _resized(images: Tensor, side: int) -> Tensor:
    return functional.interpolate(images, size=(side, side), mode="bicubic", align_corners=True)


def plain_exit(
    sums: Tensor, logits: Tensor, active: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    """The summed logits and the rows that stay, as one writes it."""
    sums = sums + logits
    confidence = sums.softmax(dim=1).max(dim=1).values
    stay = confidence <= threshold
    return sums[stay], active[stay]


def plain_algorithm(model: TwoStageClassifier, images: Tensor) -> Tensor:
    """Algorithm 1 to the last exit in plain PyTorch."""
    active = torch.arange(len(images), device=images.device)
    sums = model.glance(_resized(images, model.glance_size))
    sums, active = plain_exit(torch.zeros_like(sums), sums, active, 2.0)
    anchor = _trained_anchor(model)
    expanded, logits = plain_network(anchor, images)
    chosen = plain_select(plain_map(anchor, expanded, logits.argmax(dim=1)))
    for step in range(NUM_PATCHES):
        patches = plain_gather(images, [[places[step]] for places in chosen])
        sums, active = plain_exit(sums, model.focus(patches), active, 2.0)
    return sums.argmax(dim=1)


def summarise(rows: Iterable[Row]) -> Iterator[str]:
    """Of each setting and way: milliseconds of an image on its way to the last exit, and shares."""
    for (backbone, batch, size), of_setting in _by_setting(rows).items():
        for way in ("before", "after"):
            parts = {
                str(row.settings["part"]): row.time.median * row.facts["times"]
                for row in of_setting
                if row.name == way and row.time is not None and row.settings["part"] != WHOLE
            }
            total = sum(parts.values())
            if not total:
                continue
            shares = ", ".join(f"{part} {100 * t / total:.1f} %" for part, t in parts.items())
            yield (
                f"{backbone}, batch {batch}, size {size}, {way}: {1e3 * total:.2f} ms in parts: "
                f"{shares}"
            )


def _by_setting(rows: Iterable[Row]) -> dict[tuple[object, ...], list[Row]]:
    found: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        key = tuple(row.settings[name] for name in ("backbone", "batch", "size"))
        found.setdefault(key, []).append(row)
    return found

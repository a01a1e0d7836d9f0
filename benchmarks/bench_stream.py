"""Throughput of the stream: against the passes' own times, and against batches in step.

    python benchmarks/bench_stream.py [--model NAME | --backbone NAME] [--threads N] [--json FILE]

Three things take turns: the stream over all images; `classify` on one batch after the other
("step"); and the passes alone ("ideal"): as many whole batches of resize and glance, of AnchorNet
with selection, and of cutting patches and focus as the images need together, and nothing else. "of
ideal" is ideal / stream, and the goal is 0.95. "over step" is how many times faster the stream is
than batch by batch. The mixes are made by thresholds between the images' own confidences, so that
the wanted share leaves at each exit.

With one thread of the CPU the clock is the time that the thread had a processor; with more, and on
a GPU, it is the wall's.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
from collections import Counter
from typing import Any

import timing
import torch
from torch import Tensor

from anchornet_ext.inference import TwoStageClassifier
from anchornet_ext.inference.early_exit import Classification
from anchornet_ext.inference.passes import Passes, channels_last, compiled_passes, plain_passes
from anchornet_ext.inference.stream import StreamResult
from anchornet_ext.models import AnchorNet
from anchornet_ext.models.backbones import build_backbone
from anchornet_ext.ops import gather_patches

#: Shares of the images that leave at exits 1, 2, ..., of five.
MIXES = {
    "all at the glance": (1.0, 0.0, 0.0, 0.0, 0.0),
    "nine of ten at the glance": (0.9, 0.04, 0.03, 0.02, 0.01),
    "half at every exit": (0.5, 0.25, 0.125, 0.0625, 0.0625),
    "as many at each exit": (0.2, 0.2, 0.2, 0.2, 0.2),
    "few early": (0.1, 0.1, 0.1, 0.1, 0.6),
    "all at the last exit": (0.0, 0.0, 0.0, 0.0, 1.0),
}


def build(arguments: argparse.Namespace) -> TwoStageClassifier:
    if arguments.backbone is None:
        return TwoStageClassifier.from_pretrained(arguments.model, device=arguments.device)
    torch.manual_seed(0)
    networks = [build_backbone(arguments.backbone, num_classes=1000) for _ in range(2)]
    return TwoStageClassifier(AnchorNet(1000), *networks).to(arguments.device).eval().fold()


def thresholds_for(confidence: Tensor, shares: tuple[float, ...]) -> tuple[float, ...]:
    """Such that these shares of the images leave at each exit, as nearly as ties allow."""
    remaining = torch.ones(len(confidence), dtype=torch.bool)
    thresholds = []
    for step, share in enumerate(shares[:-1]):
        values = confidence[remaining, step].sort(descending=True).values
        leaving = min(round(share * len(confidence)), len(values))
        if leaving == len(values):
            thresholds.append(-1.0)
            remaining &= False
        elif leaving == 0:
            thresholds.append(1.0)
        else:
            thresholds.append(float(values[leaving - 1 : leaving + 1].mean()))
            remaining &= confidence[:, step] <= thresholds[-1]
    return tuple(thresholds)


class Ideal:
    """The passes that some images need, in whole batches, without deciding anything."""

    def __init__(
        self,
        model: TwoStageClassifier,
        passes: Passes,
        images: Tensor,
        batch: int,
        looks: dict[str, int],
    ) -> None:
        self._model = model
        self._passes = passes
        self._images = images
        # Scattered, as the slots of a batch are.
        self._index = torch.randperm(len(images), device=images.device)[:batch]
        room = torch.tensor([side - model.patch_size + 1 for side in images.shape[2:]])
        self._corners = (torch.rand(batch, 2) * room).long().to(images.device)
        self._sizes = [
            (getattr(self, kind), min(batch, count - begin))
            for kind, count in looks.items()
            for begin in range(0, count, batch)
        ]
        random.Random(0).shuffle(self._sizes)

    def __call__(self) -> None:
        for run, size in self._sizes:
            run(size)

    def glance(self, size: int) -> object:
        return self._passes.glance(channels_last(self._model.glance_input(self._images[:size])))

    def localise(self, size: int) -> object:
        return self._passes.localise(channels_last(self._images[self._index[:size]]))

    def focus(self, size: int) -> object:
        patches = gather_patches(
            self._images,
            self._corners[:size],
            self._model.patch_size,
            image_index=self._index[:size],
            memory_format=torch.channels_last,
        )
        return self._passes.focus(patches)


def measure(
    model: TwoStageClassifier,
    passes: Passes,
    images: Tensor,
    confidence: Tensor,
    mix: str,
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    batch = arguments.batch
    thresholds = thresholds_for(confidence, MIXES[mix])

    def stream() -> list[StreamResult]:
        return list(model.stream(images, batch=batch, thresholds=thresholds, passes=passes))

    def in_step() -> list[Classification]:
        return [model.classify(part, thresholds) for part in images.split(batch)]

    exits = Counter(result.found.exit_step for result in stream() if result.found)
    looks = {
        "glance": len(images),
        "localise": len(images) - exits[1],
        "focus": sum((step - 1) * count for step, count in exits.items()),
    }
    ideal = Ideal(model, passes, images, batch, looks)
    times = timing.interleaved_median(
        {"ideal": ideal, "stream": stream, "step": in_step},
        arguments.repeats,
        warmup=1,
        before=lambda: None,  # one call is a sample
        device=arguments.device,
    )
    row = {
        "mix": mix,
        "left_at_exit": [exits[step] for step in range(1, model.num_exits + 1)],
        "looks": looks,
        "milliseconds_per_image": {
            name: [1e3 * seconds / len(images) for seconds in times[name]] for name in times
        },  # median and quartiles
        "of_ideal": times["ideal"].median / times["stream"].median,
        "over_step": times["step"].median / times["stream"].median,
    }
    per_image = row["milliseconds_per_image"]
    print(
        f"{mix:<28} {per_image['ideal'][0]:>8.2f} {per_image['stream'][0]:>8.2f} "
        f"{per_image['step'][0]:>8.2f} {row['of_ideal']:>9.3f} {row['over_step']:>9.3f}",
        flush=True,
    )
    return row


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    networks = parser.add_mutually_exclusive_group()
    networks.add_argument("--model", default="caltech101", help="a saved or bundled model")
    networks.add_argument("--backbone", help="random weights of this backbone, 1000 classes")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--size", type=int, default=224, help="of the images, in pixels")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="torch threads; torch's choice unless given")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--mixes", nargs="+", choices=MIXES, default=list(MIXES))
    parser.add_argument("--compile", metavar="MODE", help="the stream's passes by torch.compile")
    parser.add_argument("--json", help="also write the rows to this file")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = build(arguments)
    size = (arguments.size, arguments.size)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(arguments.images, 3, *size, generator=generator).to(arguments.device)
    confidence = torch.cat(
        [
            model.classify(part, exit_at=model.num_exits).confidence.cpu()
            for part in images.split(32)
        ]
    )
    passes = plain_passes(model, size)
    if arguments.compile:
        passes = compiled_passes(model, size, mode=arguments.compile)
    print(
        f"torch {torch.__version__}, {arguments.device}, {torch.get_num_threads()} threads, "
        f"{arguments.backbone or arguments.model}, {arguments.images} images, "
        f"batch {arguments.batch}\n"
    )
    print(
        f"{'milliseconds per image':<28} {'ideal':>8} {'stream':>8} {'step':>8}  of ideal over step"
    )
    rows = []
    with torch.no_grad():
        for mix in arguments.mixes:
            rows.append(measure(model, passes, images, confidence, mix, arguments))
    if arguments.json:
        about = {
            "command": " ".join(["python", *sys.argv]),
            "torch": torch.__version__,
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "rows": rows,
        }
        with open(arguments.json, "w") as file:
            json.dump(about, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())

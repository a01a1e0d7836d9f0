"""Suite `stream`: throughput against the passes' own times, and against batches in step.

Four things take turns: the stream over all images, which come in batches as a DataLoader gives them
("stream") or one by one ("stream, single images"); `classify` on one batch after the other
("step"); and the passes alone ("ideal"): as many whole batches of resize and glance, of AnchorNet
with selection, and of cutting patches and focus as the images need together, and nothing else. The
stream's ratio over the ideal has the goal 0.95. The mixes are made by thresholds between the
images' own confidences, so that the wanted share leaves at each exit.

The ideal looks at every image once in the glance, as the stream does, and not at one batch that
stays in the caches; images for AnchorNet and for the patches are scattered over all, as slots are.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from anchornet_ext._arguments import positive
from anchornet_ext.inference import TwoStageClassifier
from anchornet_ext.inference.classification import Classification
from anchornet_ext.inference.passes import (
    Passes,
    check_image_size,
    compiled_passes,
    plain_passes,
)
from anchornet_ext.ops import gather_patches

from .harness import Case, Options, Row, Setting, measure_case
from .networks import random_classifier

NAME = "stream"
SUMMARY = "images at different exits in full batches, against the passes alone and batch by batch"

#: Shares of the images that leave at exits 1, 2, ..., of five.
MIXES = {
    "all at the glance": (1.0, 0.0, 0.0, 0.0, 0.0),
    "nine of ten at the glance": (0.9, 0.04, 0.03, 0.02, 0.01),
    "half at every exit": (0.5, 0.25, 0.125, 0.0625, 0.0625),
    "as many at each exit": (0.2, 0.2, 0.2, 0.2, 0.2),
    "few early": (0.1, 0.1, 0.1, 0.1, 0.6),
    "all at the last exit": (0.0, 0.0, 0.0, 0.0, 1.0),
}
NUM_EXITS = 5
SINGLE = "stream, single images"
PIXELS = ("uint8", "float32")
QUICK_MIXES = ("half at every exit", "all at the last exit")
DEFAULT_MODEL = "caltech101"


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Declares this suite's own options."""
    group.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        metavar="FOLDER|NAME",
        help="a saved or bundled model, where no --backbones are given (default: %(default)s)",
    )
    group.add_argument("--images", type=positive, metavar="N", help="of a stream (512)")
    group.add_argument(
        "--mixes",
        nargs="+",
        choices=MIXES,
        metavar="MIX",
        help=f"how images leave: {', '.join(MIXES)} (default: all)",
    )
    group.add_argument(
        "--pixels",
        choices=PIXELS,
        default=PIXELS[0],
        help="bytes, as photos are, or normalised images (default: %(default)s)",
    )
    group.add_argument(
        "--compile-stream", metavar="MODE", help="the stream's passes by torch.compile in this mode"
    )


def check(options: Options) -> None:
    """
    Raises:
        ValueError: a size has no room for a patch, a backbone is unknown, or the model has another
            number of exits than the mixes.
        FileNotFoundError: there is no such model.
    """
    for name in _names(options):
        model = _build_model(name, options)
        if model.num_exits != NUM_EXITS:
            raise ValueError(f"--model {name} has {model.num_exits} exits, not {NUM_EXITS}")
        for size in _sizes(options):
            check_image_size(model, (size, size))


def measure(options: Options) -> Iterator[Row]:
    """The rows of all models, sizes, batches and mixes, in float32."""
    if options.dtypes is not None and torch.float32 not in options.dtypes:
        return
    arguments = options.arguments
    count = getattr(arguments, "images", None) or (24 if options.quick else 512)
    compiled = getattr(arguments, "compile_stream", None)
    pixels = getattr(arguments, "pixels", PIXELS[0])
    mixes = getattr(arguments, "mixes", None) or (QUICK_MIXES if options.quick else MIXES)
    for name in _names(options):
        model = _build_model(name, options)
        for size in _sizes(options):
            images = _images(count, size, pixels, options.device)
            confidence = _confidence(model, images)
            passes = plain_passes(model, (size, size))
            if compiled:
                passes = compiled_passes(model, (size, size), mode=compiled)
            for batch in options.batches or ((8,) if options.quick else (32,)):
                for mix in mixes:
                    settings: dict[str, Setting] = {
                        "mix": mix,
                        "model": name,
                        "batch": batch,
                        "size": size,
                        "images": count,
                        "pixels": pixels,
                    }
                    if compiled:
                        settings["compiled"] = f"compiled: {compiled}"
                    thresholds = thresholds_for(confidence, MIXES[mix])
                    run = Runs(model, passes, images, batch, thresholds)
                    yield from measure_case(case(settings, run, count), options)


def case(settings: Mapping[str, Setting], runs: Runs, count: int) -> Case:
    """A mix's contenders; one call of each is a sample."""
    return Case(
        suite=NAME,
        settings=settings,
        build=lambda: {
            "ideal": runs.ideal,
            NAME: runs.stream,
            SINGLE: runs.stream_of_single_images,
            "step": runs.step,
        },
        batch=count,
        over=("ideal", "step"),
        facts={"left at exit": runs.left_at_exit, "looks": runs.looks},
        sample=None,
        rounds=7,
        mode=torch.no_grad,
    )


def in_table(row: Row) -> bool:
    """The others are seen in the ratios."""
    return row.name in (NAME, SINGLE)


def thresholds_for(confidence: Tensor, shares: Sequence[float]) -> tuple[float, ...]:
    """Such that these shares of the images leave at each exit, as nearly as ties allow.

    Args:
        confidence: (N, T) of every image at every exit.
        shares: of all images, T of them.
    """
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


class Runs:
    """What takes turns, for one mix.

    Attributes:
        left_at_exit: how many images left at exits 1, 2, ...
        looks: how often each pass was needed, in images.
    """

    def __init__(
        self,
        model: TwoStageClassifier,
        passes: Passes,
        images: Tensor,
        batch: int,
        thresholds: Sequence[float],
    ) -> None:
        self._model = model
        self._passes = passes
        self._images = images
        self._batch = batch
        self._thresholds = tuple(thresholds)
        exits = Counter(exit_step for _, exit_step in self.stream())
        self.left_at_exit = [exits[step] for step in range(1, model.num_exits + 1)]
        self.looks = {
            "glance": len(images),
            "localise": len(images) - exits[1],
            "focus": sum((step - 1) * count for step, count in exits.items()),
        }
        # Scattered, as the slots of a batch are.
        generator = torch.Generator().manual_seed(0)
        turns = 2 + batch // len(images)  # so that a batch may begin anywhere
        index = torch.randperm(len(images), generator=generator)
        self._index = index.repeat(turns).to(images.device)
        room = torch.tensor([side - model.patch_size + 1 for side in images.shape[2:]])
        corners = (torch.rand(len(self._index), 2, generator=generator) * room).long()
        self._corners = corners.to(images.device)
        self._normalisation = model.normalisation() if images.dtype == torch.uint8 else {}
        passes_by_name = {
            "glance": self._glance,
            "localise": self._localise,
            "focus": self._focus,
        }
        self._calls = [
            (passes_by_name[kind], begin % len(images), min(batch, count - begin))
            for kind, count in self.looks.items()
            for begin in range(0, count, batch)
        ]
        random.Random(0).shuffle(self._calls)

    def stream(self) -> list[tuple[int, int]]:
        """(label, exit) of the images, which come in batches."""
        return self._stream(in_batches(self._images, self._batch))

    def stream_of_single_images(self) -> list[tuple[int, int]]:
        """Likewise, one by one."""
        return self._stream(iter(self._images))

    def _stream(self, source: Iterable[Tensor]) -> list[tuple[int, int]]:
        results = self._model.stream(
            source, batch=self._batch, thresholds=self._thresholds, passes=self._passes
        )
        answers = []
        for result in results:
            if result.found is None:
                raise RuntimeError(f"image {result.position} of the stream: {result.error}")
            # A result makes what it is asked for: ask for what anybody wants.
            answers.append((result.found.label, result.found.exit_step))
        return answers

    def step(self) -> list[Classification]:
        """Batch by batch."""
        batches = in_batches(self._images, self._batch)
        return [self._model.classify(part, self._thresholds) for part in batches]

    def ideal(self) -> None:
        """The passes that the images need, in whole batches, without deciding anything."""
        for run, begin, size in self._calls:
            run(begin, size)

    def _glance(self, begin: int, size: int) -> object:
        small = self._model.glance_input(self._images[begin : begin + size])
        return self._passes.glance(small)

    def _localise(self, begin: int, size: int) -> object:
        index = self._index[begin : begin + size]
        origin = torch.zeros_like(self._corners[: len(index)])
        return self._passes.localise(self._cut(index, origin, tuple(self._images.shape[2:])))

    def _focus(self, begin: int, size: int) -> object:
        index = self._index[begin : begin + size]
        corners = self._corners[begin : begin + size]
        side = self._model.patch_size
        return self._passes.focus(self._cut(index, corners, (side, side)))

    def _cut(self, index: Tensor, corners: Tensor, size: tuple[int, ...]) -> Tensor:
        return gather_patches(
            self._images,
            corners,
            size,
            image_index=index,
            memory_format=torch.channels_last,
            **self._normalisation,
        )


def in_batches(images: Tensor, batch: int) -> list[Tensor]:
    return [images[begin : begin + batch] for begin in range(0, len(images), batch)]


def _names(options: Options) -> Sequence[str]:
    """Of backbones, or of the one model."""
    return options.backbones or (getattr(options.arguments, "model", DEFAULT_MODEL),)


def _sizes(options: Options) -> tuple[int, ...]:
    return options.sizes or ((128,) if options.quick else (224,))


def _build_model(name: str, options: Options) -> TwoStageClassifier:
    """A saved one; or, for a backbone, one with random weights for 1000 classes."""
    if options.backbones is None:
        return TwoStageClassifier.from_pretrained(name, device=options.device)
    # With statistics of batch norm: without, all images are as sure, and no mix is as it was asked.
    return random_classifier(name).tuned().to(options.device)


def _images(count: int, size: int, pixels: str, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, size, size, generator=generator)
    if pixels == "uint8":
        images = (128 + 60 * images).clamp_(0, 255).to(torch.uint8)
    return images.to(device)


def _confidence(model: TwoStageClassifier, images: Tensor) -> Tensor:
    """(N, T) on the CPU."""
    with torch.no_grad():
        found = [model.classify(part, exit_at=model.num_exits) for part in in_batches(images, 32)]
    return torch.cat([one.confidence.cpu() for one in found])

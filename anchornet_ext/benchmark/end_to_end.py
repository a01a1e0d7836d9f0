"""Suite `end_to_end`: how much of the speed-up that the multiply-adds promise the clock shows.

Whole images, normalised and on the device, to answers on the device. "dense" is the backbone on the
whole image; it and both networks of the classifier are tuned in the same way (`models.tuning`), and
all take turns in one run. "exit t" lets every image leave there, one patch after the other; in
"exit t, known" that is known in advance, so that a small batch sees its patches in one pass. A mix
lets so many images leave at each exit as thresholds did on the published table of DenseNet-201 on
ImageNet; "step" is `classify`, in which the batch shrinks, "stream" is `classifier.stream`, whose
batches stay full.

A large batch is not always the fastest for the dense network, whose feature maps are large: it also
runs in batches of 32, of 8 and one by one, and the speed-up is that over the fastest. Sizes other
than 224 and batches from 1 to 1000 show how it scales.

Weights are random: what is computed does not depend on training.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from anchornet_ext._arguments import positive
from anchornet_ext.inference import TwoStageClassifier
from anchornet_ext.inference.lookahead import FULL_PASS
from anchornet_ext.inference.passes import check_image_size
from anchornet_ext.models import build_backbone, count_macs
from anchornet_ext.models.tuning import tune

from .harness import Case, Options, Row, Setting, measure_case
from .networks import random_classifier, with_statistics
from .stream import in_batches, thresholds_for

NAME = "end_to_end"
SUMMARY = "whole images at each exit and at mixes of exits, against the dense backbone tuned alike"

BACKBONES = ("resnet50", "densenet201", "mobilenet_v3_large")
BATCHES = (1, 32)
#: Shares of ImageNet's validation images that left at exits 1 to 5 of the published DenseNet-201
#: under published thresholds, by their mean cost in GMACs there.
MIXES = {
    "0.83 G mix": (0.98054, 0.00704, 0.0012, 0.0017, 0.00952),
    "1.09 G mix": (0.84064, 0.07768, 0.01058, 0.01482, 0.05628),
    "1.40 G mix": (0.69278, 0.128, 0.03426, 0.03498, 0.10998),
    "1.92 G mix": (0.35974, 0.30886, 0.10484, 0.06386, 0.1627),
}
#: Names for the mixes on the command line: "0.83" and so on.
BUDGETS = {name.split()[0]: name for name in MIXES}
NO_BUDGET = "none"
DENSE = "dense"
#: Smaller batches that the dense network may be faster in.
DENSE_IN_PARTS = {"dense one by one": 1, "dense in 8s": 8, "dense in 32s": 32}
#: Of so many images at most: an image's time in batches of 8 does not depend on how many there are.
_MOST_IN_PARTS = 256
_PART = 32  # the stream's batches
#: Below, the shares of a mix would be far from what was asked for.
_LEAST_OF_A_MIX = 64


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Declares this suite's own options."""
    group.add_argument(
        "--exits", type=positive, nargs="+", metavar="T", help="of 1 to 5 (default: all)"
    )
    group.add_argument(
        "--budgets",
        nargs="+",
        choices=(*BUDGETS, NO_BUDGET),
        metavar="GMACS",
        help=f"mixes of exits for batches of {_LEAST_OF_A_MIX} or more: {', '.join(BUDGETS)}, "
        f"or {NO_BUDGET} (default: all)",
    )
    group.add_argument("--compiled", action="store_true", help="all networks through torch.compile")


def check(options: Options) -> None:
    """
    Raises:
        ValueError: an exit that there is not, an unknown backbone, or a size without room for a
            patch.
    """
    for exit_step in getattr(options.arguments, "exits", None) or ():
        if exit_step > 5:
            raise ValueError(f"--exits {exit_step}: there are 5")
    for name in options.backbones or ():
        with torch.device("meta"):
            build_backbone(name, 1000)
    for size in options.sizes or ():
        if size < 95:
            raise ValueError(f"--sizes {size}: a patch needs 95 pixels")


def measure(options: Options) -> Iterator[Row]:
    """The rows of all backbones, dtypes, sizes and batches."""
    usual = ("mobilenet_v3_small",) if options.quick else BACKBONES
    for name in options.backbones or usual:
        for dtype in options.dtypes or (torch.float32,):
            for size in options.sizes or ((112,) if options.quick else (224,)):
                # Of each backbone and size anew: compiled code and its buffers are large.
                networks = Networks(name, size, dtype, options)
                for batch in options.batches or ((2,) if options.quick else BATCHES):
                    for row in measure_case(case(networks, batch, options), options):
                        yield _with_macs(row, networks)


class Networks:
    """The classifier and the dense network of one backbone, tuned alike.

    Attributes:
        settings: what tells them from others.
        macs: contender -> multiply-adds of an image.
    """

    def __init__(self, name: str, size: int, dtype: torch.dtype, options: Options) -> None:
        compiled = getattr(options.arguments, "compiled", False)
        self.settings: dict[str, Setting] = {
            "backbone": name,
            "size": size,
            "dtype": str(dtype).removeprefix("torch."),
        }
        if compiled:
            self.settings["compiled"] = True
        classifier = random_classifier(name)
        check_image_size(classifier, (size, size))
        self.classifier: TwoStageClassifier = classifier.tuned(compile=compiled, dtype=dtype)
        self.classifier.to(options.device)
        torch.manual_seed(0)
        dense = with_statistics(build_backbone(name, 1000), size)
        self.dense_macs = count_macs(dense, (3, size, size))
        self.dense: nn.Module = tune(dense, compile=compiled, dtype=dtype).to(options.device)
        self.size, self.dtype = size, dtype
        #: Of the classifier's images: on a CPU its AnchorNet stays in float32.
        self.images_dtype = next(self.classifier.anchor.parameters()).dtype
        per_exit = self.classifier.macs_per_exit((size, size))
        self.macs: dict[str, float] = dict.fromkeys((DENSE, *DENSE_IN_PARTS), self.dense_macs)
        self.macs |= {f"exit {t}": float(macs) for t, macs in enumerate(per_exit, start=1)}
        self.macs |= {f"exit {t}, known": float(macs) for t, macs in enumerate(per_exit, start=1)}

    def images(self, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """(batch, 3, size, size) of noise, in channels_last as all networks want it."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(batch, 3, self.size, self.size, generator=generator)
        return images.to(device, dtype).contiguous(memory_format=torch.channels_last)


def case(networks: Networks, batch: int, options: Options) -> Case:
    """All contenders for one batch."""
    return Case(
        suite=NAME,
        settings={**networks.settings, "batch": batch},
        build=partial(_contenders, networks, batch, options),
        batch=batch,
        over=(DENSE, *DENSE_IN_PARTS),
        fewer={name: min(batch, _MOST_IN_PARTS) for name in DENSE_IN_PARTS},
        sample=None,
        # A batch of 1000 of a large network takes a minute on a small machine.
        rounds=15 if batch < 8 else 7 if batch <= 64 else 3 if batch <= 256 else 1,
        mode=torch.no_grad,
    )


def _contenders(
    networks: Networks, batch: int, options: Options
) -> dict[str, Callable[[], object]]:
    classifier, dense = networks.classifier, networks.dense
    images = networks.images(batch, options.device, networks.images_dtype)
    # The dense network need not convert them.
    own = images.to(networks.dtype)
    calls: dict[str, Callable[[], object]] = {DENSE: lambda: dense(own)}
    for name, size in DENSE_IN_PARTS.items():
        if batch > size:
            calls[name] = partial(_in_parts, dense, own[:_MOST_IN_PARTS], size)
    usual = (1, 2, 3, 4, 5) if batch <= 64 else (1, 3, 5)
    for exit_step in getattr(options.arguments, "exits", None) or usual:
        calls[f"exit {exit_step}"] = partial(_step, classifier, images, exit_at=exit_step)
        if exit_step > 2 and 2 * batch <= FULL_PASS:
            calls[f"exit {exit_step}, known"] = partial(
                _step, classifier, images, exit_at=exit_step, lookahead="free"
            )
    mixes = _mixes(options) if batch >= _LEAST_OF_A_MIX else ()
    if mixes:
        found = [classifier.classify(part, exit_at=5) for part in in_batches(images, _PART)]
        confidence = torch.cat([one.confidence.cpu() for one in found])
        for name in mixes:
            thresholds = thresholds_for(confidence, MIXES[name])
            calls[f"{name}, step"] = partial(_step, classifier, images, thresholds=thresholds)
            calls[f"{name}, stream"] = partial(_stream, classifier, images, thresholds)
            networks.macs |= dict.fromkeys(
                (f"{name}, step", f"{name}, stream"),
                float(classifier.classify(images, thresholds).macs.double().mean()),
            )
    return calls


def _mixes(options: Options) -> list[str]:
    """The names of those that are wanted."""
    budgets = getattr(options.arguments, "budgets", None) or tuple(BUDGETS)
    return [BUDGETS[budget] for budget in budgets if budget != NO_BUDGET]


def _in_parts(network: nn.Module, images: Tensor, size: int) -> Any:
    return [network(part) for part in in_batches(images, size)]


def _step(classifier: TwoStageClassifier, images: Tensor, **options: Any) -> Tensor:
    """The labels; what else there is to know is made when it is asked for."""
    return classifier.classify(images, **options).label


def _stream(classifier: TwoStageClassifier, images: Tensor, thresholds: tuple[float, ...]) -> Any:
    size = (images.shape[2], images.shape[3])
    source = in_batches(images, _PART)  # as a DataLoader gives them
    results = classifier.stream(source, batch=_PART, thresholds=thresholds, image_size=size)
    found = [result.found for result in results]
    if None in found:
        raise RuntimeError(f"{found.count(None)} images of the stream were not classified")
    return found


def _with_macs(row: Row, networks: Networks) -> Row:
    """With the speed-ups among its facts."""
    macs = networks.macs.get(row.name)
    if macs is None:
        return row
    facts: dict[str, Any] = {**row.facts, "macs": macs}
    over = [row.ratios[name] for name in (DENSE, *DENSE_IN_PARTS) if name in row.ratios]
    if over and not row.name.startswith(DENSE):
        facts["theoretical"] = networks.dense_macs / macs
        facts["realised"] = min(over)
        facts["share"] = facts["realised"] / facts["theoretical"]
    return replace(row, facts=facts)


def describe(row: Row) -> str:
    """Both speed-ups and how much of the first is realised."""
    facts = row.facts
    if "share" not in facts:
        return ""
    return (
        f"multiply-adds promise {facts['theoretical']:.2f}, the clock shows "
        f"{facts['realised']:.2f}: {100 * facts['share']:.0f} %"
    )

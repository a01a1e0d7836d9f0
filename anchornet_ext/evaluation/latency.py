"""What an exit costs in milliseconds on this machine, and what real early exit gains.

Two measurements. `measure_passes` times the glance, AnchorNet and one patch step by themselves, in
full batches: added up they are the milliseconds of an image that leaves at exit t, which thresholds
can be fitted to (`anchornet calibrate --latency`). `measure_runs` times `classify` over photos as
it really runs, with batches that shrink from step to step, and `stream`, which fills them up,
against a plain network.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from anchornet_ext._files import write_whole
from anchornet_ext._machine import processor_name, using_threads
from anchornet_ext.inference import TwoStageClassifier
from anchornet_ext.inference.early_exit import check_images, evaluating
from anchornet_ext.inference.exit_rules import exit_rules
from anchornet_ext.inference.exit_state import RunningSums
from anchornet_ext.inference.passes import (
    available_patches,
    channels_last,
    check_image_size,
    check_logits,
    plain_passes,
)
from anchornet_ext.ops import gather_patches
from anchornet_ext.policy.exit_policy import ExitPolicy

from .report_data import Latency, MeasuredTime
from .systems import ExitSystem
from .timing import Timing, clock_for, interleaved_median

FORMAT = "anchornet_ext latency"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class PassTime:
    """Milliseconds of one image in a full batch: the median, and the quartiles around it."""

    milliseconds: float
    low: float
    high: float


@dataclass(frozen=True)
class PassTimes:
    """What the passes of a two-stage classifier cost, each by itself.

    Attributes:
        glance: resize, glance network and exit decision.
        localise: AnchorNet and the choice of patches.
        patch: one patch of each image: gather, focus network and exit decision.
        num_exits: T, for images of this size.
        setting: device, threads, batch size, ..., one fact each.
    """

    glance: PassTime
    localise: PassTime
    patch: PassTime
    num_exits: int
    setting: Mapping[str, str] = field(default_factory=dict)

    @property
    def milliseconds_per_exit(self) -> NDArray[np.float64]:
        """(T,) of an image that leaves at exit t, increasing: for `ExitTable.milliseconds`."""
        patches = np.arange(self.num_exits)
        localised = np.where(patches > 0, self.localise.milliseconds, 0.0)
        return np.asarray(self.glance.milliseconds + localised + patches * self.patch.milliseconds)


@dataclass(frozen=True)
class SpeedUp:
    """How much faster than the reference, by multiply-adds and by the clock.

    Attributes:
        name: of the `MeasuredTime`.
        theoretical: the reference's multiply-adds over its own.
        realised: the reference's time over its own.
    """

    name: str
    theoretical: float
    realised: float

    @property
    def share(self) -> float:
        """How much of the theoretical speed-up is realised."""
        return self.realised / self.theoretical


@dataclass(frozen=True)
class LatencyReport:
    """Both measurements, as a file."""

    passes: PassTimes | None = None
    runs: Latency | None = None

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, with the speed-ups and the times per exit that follow."""
        values: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION}
        values["passes"] = None
        if self.passes is not None:
            values["passes"] = asdict(self.passes)
            values["milliseconds_per_exit"] = self.passes.milliseconds_per_exit.tolist()
        values["runs"] = None
        if self.runs is not None:
            values["runs"] = {
                "times": [asdict(measured) for measured in self.runs.times],
                "setting": dict(self.runs.setting),
            }
            values["speed_ups"] = [
                asdict(speed_up) | {"share": speed_up.share} for speed_up in speed_ups(self.runs)
            ]
        return values

    @classmethod
    def from_dict(cls, values: Any) -> LatencyReport:
        """What `to_dict` described.

        Raises:
            ValueError: it is no such description, or one of a newer version.
        """
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            raise ValueError(f"this does not describe an {FORMAT}")
        version = values.get("format_version")
        if version != FORMAT_VERSION:
            raise ValueError(
                f"the format version is {version!r}, this anchornet_ext reads {FORMAT_VERSION}"
            )
        try:
            passes, runs = values["passes"], values["runs"]
            if passes is not None:
                times = {name: PassTime(**passes[name]) for name in ("glance", "localise", "patch")}
                passes = PassTimes(**{**passes, **times})
            if runs is not None:
                measured = tuple(MeasuredTime(**one) for one in runs["times"])
                runs = Latency(measured, dict(runs["setting"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"the measurements are not complete: {error}") from error
        return cls(passes, runs)

    def save(self, path: str | PathLike[str]) -> None:
        """Writes a JSON file, whole or not at all."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_whole(Path(path), text.encode())

    @classmethod
    def load(cls, path: str | PathLike[str]) -> LatencyReport:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not valid; the message names the file.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_bytes()))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: {error}") from error


def speed_ups(latency: Latency) -> list[SpeedUp]:
    """Of everything that was measured against the reference, the reference itself left out."""
    reference = latency.reference
    if reference is None:
        return []
    return [
        SpeedUp(one.name, reference.macs / one.macs, reference.milliseconds / one.milliseconds)
        for one in latency.times
        if one is not reference
    ]


def measure_passes(
    classifier: TwoStageClassifier,
    *,
    batch_size: int = 64,
    image_size: tuple[int, int] | None = None,
    repeats: int = 9,
    threads: int | None = None,
) -> PassTimes:
    """Times the passes on the classifier's device, in turns, on noise.

    Args:
        classifier: folded and in channels_last as `from_pretrained` gives it, to be fast.
        batch_size: images that go through a pass together.
        image_size: (H, W); None is the preprocessing's crop.
        repeats: rounds of the measurement.
        threads: of the CPU, put back afterwards; None leaves them.

    Raises:
        ValueError: a number below 1, or images smaller than a patch.
    """
    _check_counts(batch_size=batch_size, repeats=repeats, threads=1 if threads is None else threads)
    if image_size is None:
        image_size = (classifier.preprocessing.crop_size,) * 2
    check_image_size(classifier, image_size)
    weight = next(classifier.parameters())
    device, dtype = weight.device, weight.dtype
    # The values do not matter to the time, but NaN and equal ones would be a special case.
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 3, *image_size, generator=generator).to(device, dtype)
    passes = plain_passes(classifier, image_size)
    num_patches = available_patches(classifier, image_size)
    rules = exit_rules(classifier, num_patches, exit_at=1 + num_patches)
    rows = torch.arange(batch_size, device=device)
    with using_threads(threads), torch.no_grad(), evaluating(classifier.network_modules()):
        top_left = passes.localise(channels_last(images)).top_left[:, 0].contiguous()
        wide = torch.promote_types(dtype, torch.float32)
        sums = RunningSums(batch_size, classifier.num_classes, rules, wide, device)

        def glance() -> None:
            logits = passes.glance(channels_last(classifier.glance_input(images)))
            check_logits(logits, classifier.num_classes, "glance")
            sums.add(rows, logits, 1)

        def patch() -> None:
            patches = gather_patches(
                images,
                top_left,
                classifier.patch_size,
                image_index=rows,
                memory_format=torch.channels_last,
            )
            logits = passes.focus(patches)
            check_logits(logits, classifier.num_classes, "focus")
            sums.add(rows, logits, 2)

        timings = interleaved_median(
            {
                "glance": glance,
                "localise": lambda: passes.localise(channels_last(images)),
                "patch": patch,
            },
            repeats,
            device=device,
        )
        setting = _setting(device, dtype, batch_size, image_size, repeats)
    per_image = {name: _per_image(timing, batch_size) for name, timing in timings.items()}
    return PassTimes(**per_image, num_exits=1 + num_patches, setting=setting)


@dataclass(frozen=True)
class PlainRun:
    """A network to compare with, that sees the whole image.

    Attributes:
        name: what it is called.
        network: (B, 3, S, S) -> (B, n), in eval mode and on the device.
        images: (N, 3, S, S), the same photos as its preprocessing makes them, on the CPU or device.
        macs: of an image.
    """

    name: str
    network: Callable[[Tensor], Tensor]
    images: Tensor
    macs: float


def measure_runs(
    classifier: TwoStageClassifier | ExitSystem,
    images: Tensor,
    policies: Mapping[str, ExitPolicy] | None = None,
    *,
    plain: PlainRun | None = None,
    labels: Tensor | None = None,
    batch_size: int = 64,
    repeats: int = 7,
    threads: int | None = None,
    exits: bool = True,
) -> Latency:
    """Times real early exit over photos, in turns with everything that it is compared with.

    An image costs from where it lies on the device, normalised, to its answer on the device (in the
    stream: on the CPU): decoding and resizing photos is the same for all and left out.

    Args:
        classifier: on the device to measure; or any other system.
        images: (N, 3, H, W) normalised photos, floating point. How many leave where decides the
            time, so they should be like those to come; a multiple of `batch_size` avoids a small
            last batch.
        policies: operating points by name. A two-stage classifier runs each of them batch by batch
            and as a stream.
        plain: the network that the speed-ups are against; None: the last exit of all images.
        labels: (N,) int64, for the accuracies.
        batch_size: images that are classified together.
        repeats: rounds of the measurement; each goes through all photos once for each contender.
        threads: of the CPU, put back afterwards; None leaves them.
        exits: measure each exit alone too. The last one is measured anyway where there is no plain
            network.

    Raises:
        ValueError: images or labels of a wrong shape, other numbers of plain images, a policy for
            other exits, a name that occurs twice, or a number below 1.
        TypeError: images are not floating point.
    """
    policies = dict(policies or {})
    _check_counts(batch_size=batch_size, repeats=repeats, threads=1 if threads is None else threads)
    if isinstance(classifier, TwoStageClassifier):
        check_images(classifier, images)
    count = len(images)
    if count == 0:
        raise ValueError("there are no images to time")
    if labels is not None and (labels.shape != (count,) or labels.dtype != torch.int64):
        raise ValueError(f"labels must be ({count},) int64, got {tuple(labels.shape)}")
    if plain is not None and len(plain.images) != count:
        raise ValueError(f"there are {count} images, but {len(plain.images)} for {plain.name}")
    for policy in policies.values():
        policy.require_exits(classifier.num_exits)

    size = (images.shape[2], images.shape[3])
    if isinstance(classifier, TwoStageClassifier):
        weight = next(classifier.parameters())
        device, dtype = weight.device, weight.dtype
        last = 1 + available_patches(classifier, size)
    else:
        device, dtype = classifier.device, images.dtype
        last = classifier.num_exits
    batches = [batch.to(device) for batch in _batches(images, batch_size)]

    runs: list[_Run] = []
    if exits or plain is None:
        first = 1 if exits else last
        runs += [_Run(f"exit {t}", "exit", {"exit_at": t}) for t in range(first, last + 1)]
    runs += [_Run(name, "point", {"policy": policy}) for name, policy in policies.items()]
    if isinstance(classifier, TwoStageClassifier):
        options = {"batch": min(batch_size, count), "image_size": size}
        runs += [
            _Run(f"{name}, streamed", "stream", {"policy": policy, **options})
            for name, policy in policies.items()
        ]
    contenders: dict[str, Callable[[], object]] = {
        run.name: partial(run, classifier, batches) for run in runs
    }
    if len(contenders) != len(runs) or (plain is not None and plain.name in contenders):
        raise ValueError(f"two things to time have one name: {[run.name for run in runs]}")

    with using_threads(threads), torch.no_grad():
        if plain is not None:
            network = plain.network
            whole = [
                channels_last(batch.to(device)) for batch in _batches(plain.images, batch_size)
            ]
            contenders[plain.name] = lambda: [network(batch) for batch in whole]
        timings = interleaved_median(contenders, repeats, warmup=1, device=device)
        times = [
            _measured(
                run.name,
                run.kind,
                timings[run.name],
                count,
                *run.outcome(classifier, batches, labels),
            )
            for run in runs
        ]
        if plain is not None:
            right = None
            if labels is not None:
                predicted = torch.cat([network(batch).argmax(dim=1) for batch in whole])
                right = _share_right(predicted, labels)
            times.append(
                _measured(plain.name, "plain", timings[plain.name], count, plain.macs, right)
            )
        setting = _setting(device, dtype, batch_size, size, repeats)
    setting["images"] = str(count)
    setting["included"] = "normalised images on the device to answers on the device"
    if any(run.kind == "stream" for run in runs):
        setting["streamed"] = "images at different steps share batches; answers on the CPU"
    return Latency(tuple(times), setting)


@dataclass(frozen=True)
class _Run:
    """A way through all batches.

    Attributes:
        name, kind: see `MeasuredTime`.
        arguments: of `stream` where the kind is "stream", else of `classify`.
    """

    name: str
    kind: Literal["exit", "point", "stream"]
    arguments: Mapping[str, Any]

    def __call__(
        self, classifier: TwoStageClassifier | ExitSystem, batches: Sequence[Tensor]
    ) -> list[Any]:
        """What was found, batch by batch or image by image."""
        if self.kind == "stream":
            assert isinstance(classifier, TwoStageClassifier)
            return [one.found for one in classifier.stream(batches, **self.arguments)]
        return [classifier.classify(batch, **self.arguments) for batch in batches]

    def outcome(
        self,
        classifier: TwoStageClassifier | ExitSystem,
        batches: Sequence[Tensor],
        labels: Tensor | None,
    ) -> tuple[float, float | None]:
        """Mean multiply-adds of the images that were timed, and how many were right."""
        found = self(classifier, batches)
        macs, label = (
            torch.cat([torch.as_tensor(getattr(one, name)).reshape(-1) for one in found])
            for name in ("macs", "label")
        )
        right = None if labels is None else _share_right(label, labels)
        return float(macs.double().mean()), right


def _batches(images: Tensor, size: int) -> list[Tensor]:
    return [images[begin : begin + size] for begin in range(0, len(images), size)]


def _share_right(predicted: Tensor, labels: Tensor) -> float:
    return float((predicted == labels.to(predicted.device)).double().mean())


def _measured(
    name: str, kind: Any, timing: Timing, count: int, macs: float, accuracy: float | None
) -> MeasuredTime:
    per_image = _per_image(timing, count)
    return MeasuredTime(
        name, kind, per_image.milliseconds, per_image.low, per_image.high, macs, accuracy
    )


def _per_image(timing: Timing, count: int) -> PassTime:
    return PassTime(*(1e3 * seconds / count for seconds in timing))


def _setting(
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
    image_size: tuple[int, int],
    repeats: int,
) -> dict[str, str]:
    """The facts without which a time says nothing."""
    on_cpu = device.type == "cpu"
    alone = clock_for(device) is time.thread_time
    setting = {
        "device": processor_name() if on_cpu else torch.cuda.get_device_name(device),
        "batch size": str(batch_size),
        "image size": f"{image_size[0]} x {image_size[1]}",
        "dtype": str(dtype).removeprefix("torch."),
        "repeats": f"{repeats}, in turns; medians and quartiles",
        # See `clock_for`: other processes disturb the time of a single thread less.
        "clock": "time that the one thread had the processor" if alone else "wall clock",
        "torch": torch.__version__,
    }
    if on_cpu:
        setting["threads"] = str(torch.get_num_threads())
    return setting


def _check_counts(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")

"""Algorithm 1 for a stream of images: every pass runs on a whole batch, whoever leaves when.

In a batch that goes through the steps together, the places of those that leave stay empty. Here,
images at different steps share the batches, because all patches are seen by the same network, and
new images take the places of those that left.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from anchornet_ext.policy.exit_policy import ExitPolicy

from .exit_rules import ExitRules, exit_rules
from .feeding import Arrival, arrivals
from .pass_graphs import CudaGraphs
from .passes import Passes, available_patches, check_image_size, compiled_passes, plain_passes
from .scheduler import Scheduler, Work
from .stream_state import Decided, Localised, Pending, Recorder, StreamState

if TYPE_CHECKING:
    from .two_stage import TwoStageClassifier

#: By how many batches an image may be overtaken, unless told otherwise: so many that the incomplete
#: passes which follow cost next to nothing, so few that the results that wait for it fit in memory.
PATIENCE_IN_BATCHES = 64


@dataclass(frozen=True)
class ImageClassification:
    """What `early_exit.Classification` says of one image; n classes, T exits, on the CPU.

    Attributes:
        label: the predicted class: that of `answer_step`.
        probabilities: (n,) after input `answer_step`.
        exit_step: the number of inputs used, 1 (the glance alone) to T.
        answer_step: the input after which the answer was found.
        confidence: (T,), the largest probability after each input, NaN where it was not reached.
        step_label: (T,) int64, the class predicted after each input, -1 where not reached.
        top_left: (T - 1, 2) int64, (row, column) in pixels of the patch of each step after the
            glance, -1 where it was not reached.
        anchor_label: the class whose activation map chose the patches; None if AnchorNet did not
            see the image, as it left at the glance.
        activation_map: (h, w), AnchorNet's map of that class; None likewise.
        macs: multiply-adds that the image cost.
        full_macs: multiply-adds of an image of this size that goes to the last exit.
    """

    label: int
    probabilities: Tensor
    exit_step: int
    answer_step: int
    confidence: Tensor
    step_label: Tensor
    top_left: Tensor
    anchor_label: int | None
    activation_map: Tensor | None
    macs: int
    full_macs: int


@dataclass(frozen=True)
class StreamResult:
    """One for each image that came in.

    Attributes:
        position: its number in the input, from 0.
        key: what came with the image, or None; with `load`, what was loaded.
        found: the classification, or None if there is an error.
        error: why the image could not be classified, or None.
    """

    position: int
    key: Any
    found: ImageClassification | None
    error: Exception | None


def stream(
    classifier: TwoStageClassifier,
    source: Iterable[Any],
    *,
    batch: int = 32,
    slots: int | None = None,
    thresholds: Sequence[float] | None = None,
    exit_at: int | None = None,
    policy: ExitPolicy | None = None,
    image_size: tuple[int, int] | None = None,
    ordered: bool = True,
    load: Callable[[Any], Any] | None = None,
    workers: int = 0,
    patience: int | None = None,
    compile: bool | Mapping[str, Any] = False,
    passes: Passes | None = None,
    graphs: bool | Recorder = False,
) -> Generator[StreamResult, None, None]:
    """Classifies images as they come, with real early exit and whole batches in every pass.

    The results are those of `early_exit.classify`, up to what rounding depends on the batch.
    Nothing is computed before the first result is asked for, and no image is taken from `source`
    before there is room for it. The host waits once a pass, for one transfer.

    This is for throughput: a result may be late by as many images as it takes to fill the batches,
    up to `patience`.

    Args:
        classifier: the networks and settings; its device and dtype are used. They run in eval mode
            without gradients, and their modes are put back after every pass.
        source: gives images: uint8 (3, H, W) as `Preprocessing.crop` makes them, or floating point
            and normalised; or several as (B, 3, H, W), as a DataLoader does; or pairs of these and
            a key (for several: a sequence or tensor of keys), which comes back with the result. An
            exception object in the place of an image becomes this image's result, as an image of
            a wrong shape or type does. If `source` itself raises, the images before are classified,
            and then the exception comes out of this iterator.
        batch: images in a pass.
        slots: how many images can be under way, at least `batch`; None is 4 batches. From
            3 (batch - 1) + 1 on, all passes but the last ones are whole.
        thresholds, exit_at, policy: see `early_exit.classify`.
        image_size: (H, W) that all images have; None is the preprocessing's crop.
        ordered: results in the order of the input; otherwise as they come.
        load: makes an image of what `source` gives, a path say, which is the result's key; or a
            pair of the image and another key. What it raises becomes this image's result.
        workers: threads that call `load`, up to two batches ahead; 0 is the calling thread.
        patience: by how many later images one may be overtaken; then its passes run next, whole or
            not. None is 64 batches. It bounds how many results wait for one that comes before them.
        compile: put `torch.compile` around the networks, with its defaults (True) or with these
            options. The first batches wait for it; `passes.compiled_passes` keeps what was compiled
            for the next stream.
        passes: what to run in place of the classifier's own networks; they know their image size.
        graphs: on a GPU, record each pass as a CUDA graph and replay it. Not together with
            mode="reduce-overhead" of `torch.compile`, which records its own. A function makes the
            recordings itself; see `stream_state.Recorder`.

    Returns:
        A generator of one `StreamResult` for each image. Closing it early ends everything: the
        images under way are dropped, and the threads end after the items they are at.

    Raises:
        ValueError: what `early_exit.classify` says of the exits; a size or a number out of range;
            arguments that contradict each other. All this at the call.
    """
    if passes is not None and (compile or image_size is not None):
        raise ValueError("passes are compiled or not and for one image size: give no others")
    if passes is None:
        passes = _own_passes(classifier, image_size, compile)
    if workers < 0:
        raise ValueError(f"workers must be at least 0, got {workers}")
    if workers and load is None:
        raise ValueError(f"{workers} workers have nothing to do without load")
    num_patches = available_patches(classifier, passes.image_size)
    rules = exit_rules(classifier, num_patches, thresholds, exit_at, policy)
    if slots is None:
        slots = 4 * batch
    if patience is None:
        patience = PATIENCE_IN_BATCHES * batch
    scheduler = Scheduler(slots, batch, rules.last, patience)
    macs = classifier.macs_per_exit(passes.image_size)
    on_gpu = next(classifier.parameters()).is_cuda
    if graphs is True and not on_gpu:
        raise ValueError("graphs are for a classifier on a CUDA device")
    record = None if graphs is False else CudaGraphs() if graphs is True else graphs
    depth = 2 if on_gpu else 1
    runner = _Runner(
        scheduler,
        StreamState(classifier, passes, rules, slots, batch, record=record, in_flight=depth),
        rules,
        passes.image_size,
        macs=macs,
        full_macs=macs[num_patches],
        depth=depth,
    )
    results = runner.results(arrivals(source, load, workers, ahead=2 * batch))
    return _in_order(results) if ordered else results


def _own_passes(
    classifier: TwoStageClassifier,
    image_size: tuple[int, int] | None,
    compile: bool | Mapping[str, Any],
) -> Passes:
    if image_size is None:
        image_size = (classifier.preprocessing.crop_size,) * 2
    check_image_size(classifier, image_size)
    if compile is False:
        return plain_passes(classifier, image_size)
    return compiled_passes(classifier, image_size, **({} if compile is True else compile))


def _in_order(
    results: Generator[StreamResult, None, None],
) -> Generator[StreamResult, None, None]:
    waiting: dict[int, StreamResult] = {}
    position = 0
    try:
        for result in results:
            waiting[result.position] = result
            while position in waiting:
                yield waiting.pop(position)
                position += 1
    finally:
        results.close()


class _Runner:
    """Brings images in, starts the passes that the scheduler chooses, and takes results out.

    Args:
        image_size: (H, W) that images must have.
        macs: what leaving at exit 1, ..., T costs.
        full_macs: what leaving at the last exit that there is costs.
        depth: passes under way at a time: with 2, a GPU has the next one to do while the host
            reads the last one's outcome.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        state: StreamState,
        rules: ExitRules,
        image_size: tuple[int, int],
        macs: Sequence[int],
        full_macs: int,
        depth: int,
    ) -> None:
        self._scheduler = scheduler
        self._state = state
        self._rules = rules
        self._image_size = image_size
        self._macs = macs
        self._full_macs = full_macs
        self._depth = depth
        self._records: dict[int, _Record] = {}  # of the image in each slot
        self._under_way: deque[tuple[Work, Pending]] = deque()

    def results(self, feed: Generator[Arrival, None, None]) -> Generator[StreamResult, None, None]:
        """The results of what `feed` gives, as they come."""
        more = True
        problem: Exception | None = None
        try:
            while True:
                if len(self._under_way) < self._depth:
                    work = self._scheduler.next(more)
                    if work is not None:
                        self._under_way.append((work, self._state.run(work)))
                        continue
                    if more and self._scheduler.room:
                        try:
                            arrival = next(feed, None)
                        except Exception as error:
                            # Nobody loses the images that are under way by it.
                            problem, arrival = error, None
                        if arrival is None:
                            more = False
                        elif (refused := self._admit(arrival)) is not None:
                            yield refused
                        continue
                if not self._under_way:
                    break
                yield from self._finish(*self._under_way.popleft())
        finally:
            feed.close()
        if problem is not None:
            raise problem

    def _admit(self, arrival: Arrival) -> StreamResult | None:
        """Gives the image a slot, or returns what is wrong with it."""
        error = arrival.error or _image_error(arrival.image, self._image_size)
        if error is not None:
            self._scheduler.pass_by()
            return StreamResult(arrival.position, arrival.key, None, error)
        slot = self._scheduler.admit()
        assert arrival.image is not None
        self._state.arrive(arrival.image)
        self._records[slot] = _Record(arrival.position, arrival.key)
        return None

    def _finish(self, work: Work, pending: Pending) -> Iterator[StreamResult]:
        outcome = pending.wait()
        records = [self._records[slot] for slot in work.slots]
        if isinstance(outcome, Localised):
            self._scheduler.finish(work)
            _note_places(records, outcome)
            return
        _note_answers(records, outcome)
        left = set(self._scheduler.finish(work, set(outcome.stays.tolist())))
        rows = [row for row, slot in enumerate(work.slots) if slot in left]
        # Copied out together, so that a result that is kept does not keep the batch.
        probabilities = outcome.probabilities.index_select(0, torch.tensor(rows, dtype=torch.int64))
        for row, one in zip(rows, probabilities.unbind(), strict=True):
            del self._records[work.slots[row]]
            yield StreamResult(
                records[row].position,
                records[row].key,
                self._classification(records[row], one),
                None,
            )

    def _classification(self, record: _Record, probabilities: Tensor) -> ImageClassification:
        """What is known of an image that leaves."""
        step = len(record.labels)
        answer_step = self._rules.answer_step(record.confidences)
        missing = self._rules.num_exits - step
        top_left = torch.full((self._rules.num_exits - 1, 2), -1)
        if step > 1:
            assert record.top_left is not None
            top_left[: step - 1] = record.top_left[: step - 1]
        return ImageClassification(
            label=record.labels[answer_step - 1],
            probabilities=probabilities,
            exit_step=step,
            answer_step=answer_step,
            confidence=torch.tensor(
                record.confidences + [math.nan] * missing, dtype=probabilities.dtype
            ),
            step_label=torch.tensor(record.labels + [-1] * missing),
            top_left=top_left,
            anchor_label=record.anchor_label,
            activation_map=record.activation_map,
            macs=self._macs[step - 1],
            full_macs=self._full_macs,
        )


@dataclass
class _Record:
    """What is known of an image under way.

    Attributes:
        position, key: see `StreamResult`.
        confidences, labels: after each input so far.
        anchor_label, activation_map, top_left: see `Localised`; None before AnchorNet.
    """

    position: int
    key: Any
    confidences: list[float] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    anchor_label: int | None = None
    activation_map: Tensor | None = None
    top_left: Tensor | None = None


def _note_answers(records: Sequence[_Record], decided: Decided) -> None:
    # Not strict: a batch that was filled up has more rows than images.
    for record, confidence, label in zip(
        records, decided.confidence.tolist(), decided.label.tolist(), strict=False
    ):
        record.confidences.append(confidence)
        record.labels.append(label)


def _note_places(records: Sequence[_Record], localised: Localised) -> None:
    # Copied one by one, so that a result that is kept does not keep the batch.
    labels = localised.anchor_label.tolist()
    for record, label, activation_map, top_left in zip(
        records, labels, localised.activation_map, localised.top_left, strict=False
    ):
        record.anchor_label = label
        record.activation_map = activation_map.clone()
        record.top_left = top_left.clone()


def _image_error(image: Tensor | None, image_size: tuple[int, int]) -> Exception | None:
    assert image is not None
    expected = (3, *image_size)
    if tuple(image.shape) != expected:
        return ValueError(
            f"the image is {tuple(image.shape)}, but this stream is for {expected} (image_size)"
        )
    if image.dtype != torch.uint8 and not image.is_floating_point():
        return TypeError(f"an image must be uint8 or floating point, got {image.dtype}")
    return None

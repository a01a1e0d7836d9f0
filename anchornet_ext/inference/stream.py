"""Algorithm 1 for a stream of images: every pass runs on a whole batch, whoever leaves when.

In a batch that goes through the steps together, the places of those that leave stay empty. Here,
images at different steps share the batches, because all patches are seen by the same network, and
new images take the places of those that left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from anchornet_ext.policy.exit_policy import ExitPolicy

from .exit_rules import exit_rules, require_integer_or_none
from .feeding import Arrival, arrivals
from .ledger import ImageClassification, Ledger, StreamResult
from .pass_graphs import CudaGraphs
from .passes import (
    Passes,
    available_patches,
    check_image_size,
    compiled_passes,
    map_size,
    plain_passes,
)
from .scheduler import Scheduler, Work
from .stream_state import Localised, Pending, Recorder, StreamState

if TYPE_CHECKING:
    from .two_stage import TwoStageClassifier

#: By how many batches an image may be overtaken, unless told otherwise: so many that the incomplete
#: passes which follow cost next to nothing, so few that the results that wait for it fit in memory.
PATIENCE_IN_BATCHES = 64

__all__ = ["PATIENCE_IN_BATCHES", "ImageClassification", "StreamResult", "stream"]


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
            and then the exception comes out of this iterator. What it gave must not change until
            it is asked for its next item; then the memory may be used again.
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
        TypeError: a number that is no integer. Likewise.
    """
    integers = {"batch": batch, "slots": slots, "workers": workers, "patience": patience}
    for name, value in integers.items():
        require_integer_or_none(name, value)
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
    state = StreamState(classifier, passes, rules, slots, batch, record=record, in_flight=depth)
    size = map_size(classifier, passes.image_size)
    ledger = Ledger(slots, rules, size, macs, macs[num_patches], state.dtype)
    runner = _Runner(scheduler, state, ledger, passes.image_size, depth)
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
            if result.position != position:
                waiting[result.position] = result
                continue
            yield result
            position += 1
            while waiting and position in waiting:
                yield waiting.pop(position)
                position += 1
    finally:
        results.close()


class _Runner:
    """Brings images in, starts the passes that the scheduler chooses, and takes results out.

    Args:
        image_size: (H, W) that images must have.
        depth: passes under way at a time: with 2, a GPU has the next one to do while the host
            reads the last one's outcome.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        state: StreamState,
        ledger: Ledger,
        image_size: tuple[int, int],
        depth: int,
    ) -> None:
        self._scheduler = scheduler
        self._state = state
        self._ledger = ledger
        self._image_size = image_size
        self._depth = depth
        self._under_way: deque[tuple[Work, Pending]] = deque()
        self._arrived: Arrival | None = None  # of which some images have no slot yet
        self._begun = 0  # images of it that were taken in, or refused
        self._wrong: Exception | None = None  # with all of its images
        self._more = True
        self._problem: Exception | None = None  # the source's own

    def results(self, feed: Generator[Arrival, None, None]) -> Generator[StreamResult, None, None]:
        """The results of what `feed` gives, as they come."""
        try:
            while True:
                if len(self._under_way) < self._depth:
                    work = self._scheduler.next(self._more)
                    if work is not None:
                        self._under_way.append((work, self._state.run(work)))
                        continue
                    if self._more and self._scheduler.admissible:
                        yield from self._take_in(feed)
                        continue
                if not self._under_way:
                    break
                yield from self._finish(*self._under_way.popleft())
        finally:
            self._arrived = None
            self._state.close()
            feed.close()
        if self._problem is not None:
            raise self._problem

    def _take_in(self, feed: Iterator[Arrival]) -> Iterator[StreamResult]:
        """Takes images in until there may be a pass to run; refuses those that are none."""
        room = self._scheduler.admissible
        positions: list[int] = []  # of images that have no slot yet: they are given together
        keys: list[Any] = []
        while self._more and len(keys) < room:
            if self._arrived is None:
                self._ask(feed)
                continue
            arrival, begin, count = self._arrived, self._begun, len(self._arrived.keys)
            if self._wrong is not None:
                self._begin(positions, keys)
                self._pass(begin + 1)
                self._scheduler.pass_by()
                room = self._scheduler.admissible
                yield StreamResult(arrival.position + begin, arrival.keys[begin], None, self._wrong)
                continue
            assert arrival.images is not None
            end = min(begin + room - len(keys), count)
            self._pass(end)
            whole = end - begin == count
            self._state.arrive(arrival.images if whole else arrival.images[begin:end])
            positions += range(arrival.position + begin, arrival.position + end)
            keys += arrival.keys if whole else arrival.keys[begin:end]
        self._begin(positions, keys)

    def _pass(self, begun: int) -> None:
        """Notes how many of those that arrived together have been taken in, or refused."""
        assert self._arrived is not None
        self._begun = begun
        if begun == len(self._arrived.keys):
            self._arrived = None

    def _begin(self, positions: list[int], keys: list[Any]) -> None:
        """Gives slots to images that were taken in, and empties the lists of them."""
        if keys:
            self._ledger.begin(self._scheduler.admit(len(keys)), positions, keys)
            positions.clear()
            keys.clear()

    def _ask(self, feed: Iterator[Arrival]) -> None:
        """Takes the next images from their source, which may write to the last ones' memory now."""
        self._state.secure()
        try:
            self._arrived = next(feed, None)
        except Exception as error:
            # Nobody loses the images that are under way by it.
            self._problem = error
        self._begun = 0
        if self._arrived is None:
            self._more = False
        else:
            self._wrong = self._arrived.error or _image_error(self._arrived, self._image_size)

    def _finish(self, work: Work, pending: Pending) -> Sequence[StreamResult]:
        outcome = pending.wait()
        if isinstance(outcome, Localised):
            self._scheduler.finish(work)
            self._ledger.note_places(work.slots, outcome)
            return ()
        self._ledger.note_answers(work.slots, outcome)
        left = set(self._scheduler.finish(work, set(outcome.stays.tolist())))
        leaving = [place for place, slot in enumerate(work.slots) if slot in left]
        if not leaving:
            return ()
        return self._ledger.take(
            [work.slots[place] for place in leaving],
            [work.steps[place] for place in leaving],
            self._state.probabilities(work, outcome, leaving),
        )


def _image_error(arrival: Arrival, image_size: tuple[int, int]) -> Exception | None:
    """What is wrong with images that came together."""
    images = arrival.images
    assert images is not None
    shape, expected = tuple(images.shape[1:]), (3, *image_size)
    if shape != expected:
        return ValueError(f"the image is {shape}, but this stream is for {expected} (image_size)")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        return TypeError(f"an image must be uint8 or floating point, got {images.dtype}")
    if images.layout is not torch.strided or images.is_meta:
        found = f"{images.layout} on {images.device}"
        return TypeError(f"an image must be a dense tensor with its numbers, got {found}")
    return None

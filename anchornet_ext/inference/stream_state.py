"""The device's side of a stream: buffers with a row for each slot, and the passes over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from .early_exit import evaluating
from .exit_rules import ExitRules
from .exit_state import RunningSums, to_device
from .passes import Passes, check_logits
from .scheduler import Pass, Work
from .slot_images import FixedImages, SlotImages

if TYPE_CHECKING:
    from .two_stage import TwoStageClassifier

#: A pass over the images at `places` (3, A): row of the image, row of everything else, step.
PlacedPass = Callable[[Tensor], "Outcome"]
#: Makes something of a pass that does the same for places of a shape that never changes.
Recorder = Callable[[PlacedPass, Tensor], PlacedPass]


class Decided(NamedTuple):
    """What A images have come to after an input."""

    stays: Tensor
    """(A,) int64: the rows of those that are not sure enough to leave, and -1 behind them."""
    confidence: Tensor
    """(A,)"""
    label: Tensor
    """(A,) int64"""
    probabilities: Tensor | None
    """(A, n), of the answers if the images left now; None: see `StreamState.probabilities`."""


class Localised(NamedTuple):
    """Where AnchorNet says to look in A images; see `passes.Places`."""

    anchor_label: Tensor
    activation_map: Tensor
    top_left: Tensor


Outcome: TypeAlias = Decided | Localised


class Pending:
    """An outcome on its way to the host: one wait for all of it, and only when it is asked for."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._event: torch.cuda.Event | None = None
        if outcome[0].is_cuda:
            self._outcome = type(outcome)(*map(_to_pinned, outcome))
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            # The current device need not be this one.
            self._event.record(torch.cuda.current_stream(outcome[0].device))

    def wait(self) -> Outcome:
        """On the host. Rows beyond the pass's own images have no meaning."""
        if self._event is not None:
            self._event.synchronize()
        return self._outcome


class StreamState:
    """Images, sums and plans in as many rows as there are slots.

    Args:
        classifier: whose settings hold; its device and its dtype are used.
        passes: what runs the networks.
        rules: when images leave.
        slots: images that can be under way.
        batch: images of a whole pass. Incomplete ones are filled up if the passes ask for it, with
            rows of their own, so that all shapes are constant.
        record: see `Recorder`; None runs the passes as they are. With it the batch is constant.
        in_flight: passes that may be under way at a time.

    Attributes:
        dtype: of sums, confidences and probabilities.
    """

    # The buffers are written to in every pass, which may run in inference mode or not.
    @torch.inference_mode(False)
    def __init__(
        self,
        classifier: TwoStageClassifier,
        passes: Passes,
        rules: ExitRules,
        slots: int,
        batch: int,
        *,
        record: Recorder | None = None,
        in_flight: int = 1,
    ) -> None:
        self._classifier = classifier
        self._passes = passes
        self._slots = slots
        self._batch = batch
        self._record = record
        self._all_leave_at_the_glance = rules.last == 1
        self._constant = passes.constant_batch or record is not None
        parameter = next(classifier.parameters())
        self._device = parameter.device
        self.dtype = torch.promote_types(parameter.dtype, torch.float32)
        rows = slots + batch
        size = passes.image_size
        self._fixed: FixedImages | None = None
        if record is not None or self._device.type != "cpu":
            self._fixed = FixedImages(classifier, slots, batch, size, in_flight)
        self._images = self._fixed or SlotImages(classifier, slots, batch, size)
        self._sums = RunningSums(rows, classifier.num_classes, rules, self.dtype, self._device)
        self._planned = torch.zeros(
            (rows, rules.num_exits - 1, 2), dtype=torch.int64, device=self._device
        )
        self._plain: dict[Pass, PlacedPass] = {
            Pass.GLANCE: self._glance,
            Pass.LOCALISE: self._localise,
            Pass.FOCUS: self._focus,
        }
        self._recorded: dict[Pass, PlacedPass] = {}

    def arrive(self, images: Tensor) -> None:
        """Images (B, 3, H, W) wait for the glance, uint8 or normalised.

        They must not change before the next `secure`, or until they have been through the glance.
        """
        if self._images.put(images.detach() if images.requires_grad else images):
            self._recorded.clear()  # they know the memory that the images were in before

    def secure(self) -> None:
        """After it, the memory that arrived images are in may be written to."""
        self._images.secure()

    def close(self) -> None:
        """Drops all images. Nothing may run afterwards."""
        self._images.close()

    @torch.no_grad()
    def run(self, work: Work) -> Pending:
        """Starts a pass.

        Args:
            work: the pass, and the slots of its images; for the glance, of all that arrived since
                the last one, in that order.

        Returns:
            `Localised` of AnchorNet, `Decided` of the others.
        """
        size = len(work.slots)
        places = self._places(work)
        with evaluating(self._classifier.network_modules()):
            if work.kind is Pass.GLANCE:
                self._images.take(size)
            outcome = self._runner(work.kind)(places)
            if isinstance(outcome, Decided) and work.kind is Pass.GLANCE:
                self._keep(work.slots, places, outcome.stays)
        return Pending(outcome)

    @torch.no_grad()
    def probabilities(self, work: Work, outcome: Decided, leaving: Sequence[int]) -> Tensor:
        """(L, n) of the answers of those that leave, which nothing else uses.

        Args:
            work: the last pass that has run.
            outcome: of it, on the host.
            leaving: L places in it.
        """
        if outcome.probabilities is not None:
            # Copied out together, so that a result that is kept does not keep the batch.
            return outcome.probabilities.index_select(0, torch.tensor(leaving))
        rows = torch.from_numpy(np.array([work.slots[place] for place in leaving], dtype=np.int64))
        step: int | Tensor = work.steps[leaving[0]]
        steps = [work.steps[place] for place in leaving]
        if any(one != step for one in steps):
            step = torch.tensor(steps)
        return self._sums.probabilities(rows, self._sums.answer_step(rows, step))

    def _places(self, work: Work) -> Tensor:
        """(3, A), or (3, b), on the device; without waiting for what that is doing."""
        images, rows, steps = list(work.slots), list(work.slots), list(work.steps)
        if self._constant:
            filled = self._batch - len(rows)
            # The spare row of images, and a row of its own for everything that is written.
            images += [self._slots] * filled
            rows += range(self._slots, self._slots + filled)
            steps += (steps[-1:] or [2]) * filled
        # Through numpy, which reads lists in half of torch's time.
        return to_device(
            torch.from_numpy(np.array((images, rows, steps), dtype=np.int64)), self._device
        )

    def _runner(self, kind: Pass) -> PlacedPass:
        if self._record is None:
            return self._plain[kind]
        if kind not in self._recorded:
            # Over the spare rows alone: recording runs a pass several times.
            spare = Work(kind, (), ())
            self._recorded[kind] = self._record(self._plain[kind], self._places(spare))
        return self._recorded[kind]

    def _keep(self, slots: Sequence[int], places: Tensor, stays: Tensor) -> None:
        """Stores the images that the glance left.

        A GPU, which would have to be waited for to know which, stores them all.
        """
        if self._fixed is not None and self._all_leave_at_the_glance:
            return
        if self._fixed is not None and self._device.type != "cpu":
            self._fixed.keep_all(places[0])
            return
        staying: list[int] = []
        if not self._all_leave_at_the_glance:  # behind the batch's rows are those that fill it up
            staying = [slot for slot in stays.tolist() if 0 <= slot < self._slots]
        place_of = {slot: place for place, slot in enumerate(slots)} if staying else {}
        self._images.keep([place_of[slot] for slot in staying], staying)

    def _glance(self, places: Tensor) -> Decided:
        rows = places[1]
        self._sums.clear(rows)
        small = self._images.glance_input(len(rows))
        return self._decided(Pass.GLANCE, rows, self._passes.glance(small), 1)

    def _localise(self, places: Tensor) -> Localised:
        image_rows, rows, _ = places.unbind()
        found = self._passes.localise(self._images.whole(image_rows))
        self._planned[rows, : found.top_left.shape[1]] = found.top_left
        return Localised(found.class_index, found.activation_map, found.top_left)

    def _focus(self, places: Tensor) -> Decided:
        image_rows, rows, steps = places.unbind()
        patches = self._images.patches(self._planned[rows, steps - 2], image_rows)
        return self._decided(Pass.FOCUS, rows, self._passes.focus(patches), steps)

    def _decided(self, kind: Pass, rows: Tensor, logits: Tensor, step: int | Tensor) -> Decided:
        check_logits(logits, self._classifier.num_classes, kind.value)
        decided = self._sums.add(rows, logits, step)
        probabilities = None
        if self._fixed is not None:  # the host cannot see yet who leaves
            answer_step = self._sums.answer_step(rows, step)
            probabilities = self._sums.probabilities(rows, answer_step)
        return Decided(decided.active, decided.confidence, decided.prediction, probabilities)


def _to_pinned(tensor: Tensor | None) -> Tensor:
    assert tensor is not None  # a GPU decides about all images of a pass
    target = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return target.copy_(tensor, non_blocking=True)

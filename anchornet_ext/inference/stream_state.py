"""The device's side of a stream: buffers with a row for each slot, and the passes over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .early_exit import evaluating
from .exit_rules import ExitRules
from .exit_state import ExitState
from .passes import Passes, check_logits, map_size
from .scheduler import Pass, Work
from .slot_images import SlotImages

if TYPE_CHECKING:
    from .two_stage import TwoStageClassifier

#: A pass over the images at `places` (3, A): row of the image, row of everything else, step.
PlacedPass = Callable[[Tensor], "Outcome | None"]
#: Makes something of a pass that does the same for places of a shape that never changes.
Recorder = Callable[[PlacedPass, Tensor], PlacedPass]


class Outcome(NamedTuple):
    """What A images have come to after an input; see `early_exit.Classification`."""

    stays: Tensor
    """(A,) int64: the slots of those that are not sure enough to leave, and -1 behind them."""
    label: Tensor
    probabilities: Tensor
    exit_step: Tensor
    answer_step: Tensor
    confidence: Tensor
    step_label: Tensor
    top_left: Tensor
    anchor_label: Tensor
    """(A,): like the map, without a meaning for images that AnchorNet has not seen."""
    activation_map: Tensor
    """(A, h, w)"""


class Pending:
    """An outcome on its way to the host: one wait for all of it, and only when it is asked for."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome
        self._event: torch.cuda.Event | None = None
        if outcome.stays.is_cuda:
            self._outcome = Outcome._make(_to_pinned(tensor) for tensor in outcome)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            # The current device need not be this one.
            self._event.record(torch.cuda.current_stream(outcome.stays.device))

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
        self._modules = list(classifier.modules())
        self._passes = passes
        self._slots = slots
        self._batch = batch
        self._record = record
        self._all_leave_at_the_glance = rules.last == 1
        self._constant = passes.constant_batch or record is not None
        parameter = next(classifier.parameters())
        self._device = parameter.device
        sums = torch.promote_types(parameter.dtype, torch.float32)
        rows = slots + batch
        self._images = SlotImages(classifier, slots, batch, passes.image_size, in_flight)
        self._exits = ExitState(rows, classifier.num_classes, rules, sums, self._device)
        self._planned = torch.zeros(
            (rows, rules.num_exits - 1, 2), dtype=torch.int64, device=self._device
        )
        self._anchor_label = self._planned.new_zeros(rows)  # (R,)
        self._map = torch.zeros(
            rows, *map_size(classifier, passes.image_size), dtype=sums, device=self._device
        )  # (R, h, w)
        self._rank = torch.arange(1, rules.num_exits, device=self._device)  # (T - 1,)
        self._plain: dict[Pass, PlacedPass] = {
            Pass.GLANCE: self._glance,
            Pass.LOCALISE: self._localise,
            Pass.FOCUS: self._focus,
        }
        self._recorded: dict[Pass, PlacedPass] = {}

    @torch.no_grad()
    def arrive(self, image: Tensor) -> None:
        """Copies an image that waits for the glance: (3, H, W), uint8 or normalised."""
        if self._images.put(image):
            self._recorded.clear()  # they know the memory that the images were in before

    @torch.no_grad()
    def run(self, work: Work) -> Pending | None:
        """Starts a pass; AnchorNet's has no outcome.

        Args:
            work: the pass, and the slots of its images; for the glance, of all that arrived since
                the last one, in that order.
        """
        size = len(work.slots)
        places = self._places(work)
        with evaluating(self._modules):
            if work.kind is Pass.GLANCE:
                self._images.take(size)
            outcome = self._runner(work.kind, places)(places)
            if outcome is None:
                return None
            if work.kind is Pass.GLANCE and not self._all_leave_at_the_glance:
                self._keep(places, outcome, size)
        return Pending(outcome)

    def _places(self, work: Work) -> Tensor:
        """(3, A), or (3, b), on the device; without waiting for what that is doing."""
        images, rows, steps = list(work.slots), list(work.slots), list(work.steps)
        if self._constant:
            filled = self._batch - len(rows)
            # The spare row of images, and a row of its own for everything that is written.
            images += [self._slots] * filled
            rows += range(self._slots, self._slots + filled)
            steps += steps[-1:] * filled
        places = torch.tensor((images, rows, steps))
        if self._device.type == "cuda":
            places = places.pin_memory()
        return places.to(self._device, non_blocking=True)

    def _runner(self, kind: Pass, places: Tensor) -> PlacedPass:
        if self._record is None:
            return self._plain[kind]
        if kind not in self._recorded:
            self._recorded[kind] = self._record(self._plain[kind], places)
        return self._recorded[kind]

    def _keep(self, places: Tensor, outcome: Outcome, size: int) -> None:
        """Stores the images that the glance left.

        A GPU, which would have to be waited for to know which, stores them all.
        """
        if self._device.type != "cpu":
            self._images.keep_all(places[0])
            return
        place_of = {slot: place for place, slot in enumerate(places[1, :size].tolist())}
        staying = [slot for slot in outcome.stays.tolist() if slot in place_of]
        self._images.keep([place_of[slot] for slot in staying], staying)

    def _glance(self, places: Tensor) -> Outcome:
        _, rows, _ = places
        self._exits.clear(rows)
        small = self._classifier.glance_input(self._images.arrived(len(rows)))
        return self._taken_in(Pass.GLANCE, rows, self._passes.glance(small), 1)

    def _localise(self, places: Tensor) -> None:
        image_rows, rows, _ = places
        found = self._passes.localise(self._images.whole(image_rows))
        self._anchor_label[rows] = found.class_index
        self._map[rows] = found.activation_map.to(self._map.dtype)
        self._planned[rows, : found.top_left.shape[1]] = found.top_left

    def _focus(self, places: Tensor) -> Outcome:
        image_rows, rows, steps = places
        patches = self._images.patches(self._planned[rows, steps - 2], image_rows)
        return self._taken_in(Pass.FOCUS, rows, self._passes.focus(patches), steps)

    def _taken_in(self, kind: Pass, rows: Tensor, logits: Tensor, step: int | Tensor) -> Outcome:
        check_logits(self._classifier, logits, kind.value)
        decided = self._exits.add(rows, logits, step)
        answers = self._exits.answers(rows)
        used = self._rank < answers.exit_step[:, None]  # (A, T - 1)
        return Outcome(
            decided.active,
            *answers,
            top_left=torch.where(used[:, :, None], self._planned[rows], -1),
            anchor_label=self._anchor_label[rows],
            activation_map=self._map[rows],
        )


def _to_pinned(tensor: Tensor) -> Tensor:
    target = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return target.copy_(tensor, non_blocking=True)

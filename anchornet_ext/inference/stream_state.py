"""The device's side of a stream: buffers with a row for each slot, and the passes over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from anchornet_ext.ops import gather_patches

from .early_exit import evaluating
from .exit_rules import ExitRules
from .exit_state import ExitState
from .passes import Passes, channels_last, check_logits, map_size
from .scheduler import Pass, Work

if TYPE_CHECKING:
    from .two_stage import TwoStageClassifier


class Outcome(NamedTuple):
    """What A images have come to after an input, on the host; see `early_exit.Classification`."""

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
        if self._event is not None:
            self._event.synchronize()
        return self._outcome


class StreamState:
    """Images, sums and plans in as many rows as there are slots.

    Args:
        classifier: whose settings hold; its device and its dtype are used.
        passes: what runs the networks.
        rules: when images leave.
        slots: rows of every buffer. The images take 3 H W numbers of the networks' dtype each.
        batch: the size to which incomplete batches are filled up if the passes ask for it.
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
    ) -> None:
        self._classifier = classifier
        self._modules = list(classifier.modules())
        self._passes = passes
        self._batch = batch
        parameter = next(classifier.parameters())
        self._device, self._dtype = parameter.device, parameter.dtype
        sums = torch.promote_types(self._dtype, torch.float32)
        self._exits = ExitState(slots, classifier.num_classes, rules, sums, self._device)
        self._images = parameter.new_empty((slots, 3, *passes.image_size), requires_grad=False)
        # On the CPU, where fresh memory is dear: AnchorNet's input, gathered and converted in one.
        self._staging: Tensor | None = None
        if self._device.type == "cpu":
            self._staging = channels_last(self._images.new_empty(batch, *self._images.shape[1:]))
        self._planned = torch.full(
            (slots, rules.num_exits - 1, 2), -1, dtype=torch.int64, device=self._device
        )
        self._anchor_label = self._planned.new_zeros(slots)  # (S,)
        self._map = torch.zeros(
            slots, *map_size(classifier, passes.image_size), dtype=sums, device=self._device
        )  # (S, h, w)
        self._rank = torch.arange(1, rules.num_exits, device=self._device)  # (T - 1,)

    @torch.no_grad()
    def run(self, work: Work, new: Sequence[Tensor] = ()) -> Pending | None:
        """Starts a pass; AnchorNet's has no outcome.

        Args:
            work: the pass, and the slots of its images.
            new: for the glance, the images of these slots: (3, H, W), uint8 or normalised.
        """
        size = len(work.slots)
        # Incomplete batches are filled up with the last image; what becomes of it is dropped.
        filled = (self._batch - size) if self._passes.constant_batch else 0
        places = torch.tensor((work.slots, work.steps))  # (2, A)
        places = torch.cat((places, places[:, -1:].expand(2, filled)), dim=1)  # (2, A or b)
        slots, steps = _to_device(places, self._device)
        rows = slots[:size]
        with evaluating(self._modules):
            if work.kind is Pass.LOCALISE:
                self._localise(slots, size)
                return None
            if work.kind is Pass.GLANCE:
                logits = self._glance(work.slots, rows, new, filled)
            else:
                logits = self._focus(slots, steps)
        check_logits(self._classifier, logits, work.kind.value)
        step = 1 if work.kind is Pass.GLANCE else steps[:size]
        decided = self._exits.add(rows, logits[:size], step)
        answers = self._exits.answers(rows)
        used = self._rank < answers.exit_step[:, None]  # (A, T - 1)
        return Pending(
            Outcome(
                decided.active,
                *answers,
                top_left=torch.where(used[:, :, None], self._planned[rows], -1),
                anchor_label=self._anchor_label[rows],
                activation_map=self._map[rows],
            )
        )

    def _glance(
        self, slots: Sequence[int], rows: Tensor, new: Sequence[Tensor], filled: int
    ) -> Tensor:
        self._exits.clear(rows)
        if self._device.type == "cpu":
            small = self._take_in_one_by_one(slots, new)
        else:
            small = self._take_in_together(rows, new)
        if filled:
            small = torch.cat((small, small[-1:].expand(filled, -1, -1, -1)))
        return self._passes.glance(channels_last(small))

    def _take_in_one_by_one(self, slots: Sequence[int], new: Sequence[Tensor]) -> Tensor:
        """Stores the images; returns them resized, (A, 3, g, g).

        A batch of them would be written to memory once more, which a small glance network notices.
        """
        small = []
        for slot, image in zip(slots, new, strict=True):
            row = self._images[slot : slot + 1]
            row.copy_(self._normalise(image))
            small.append(self._classifier.glance_input(row))
        return torch.cat(small)

    def _take_in_together(self, rows: Tensor, new: Sequence[Tensor]) -> Tensor:
        """The same in few launches and, for images on the host, one transfer."""
        dtypes = {image.dtype for image in new}
        if len(dtypes) > 1 or any(image.device.type != "cpu" for image in new):
            images = torch.stack(
                [self._normalise(_to_device(image, self._device)) for image in new]
            )
        else:
            images = self._normalise(_to_device(torch.stack(tuple(new)), self._device))
        self._images.index_copy_(0, rows, images)
        return self._classifier.glance_input(images)

    def _localise(self, slots: Tensor, size: int) -> None:
        if self._staging is None:
            images = channels_last(self._images.index_select(0, slots))
        else:
            images = self._staging[: len(slots)]
            for image, slot in zip(images, slots.tolist(), strict=True):
                image.copy_(self._images[slot])
        places = self._passes.localise(images)
        rows = slots[:size]
        self._anchor_label[rows] = places.class_index[:size]
        self._map[rows] = places.activation_map[:size].to(self._map.dtype)
        num_patches = places.top_left.shape[1]
        self._planned[rows, :num_patches] = places.top_left[:size]

    def _focus(self, slots: Tensor, steps: Tensor) -> Tensor:
        patches = gather_patches(
            self._images,
            self._planned[slots, steps - 2],
            self._classifier.patch_size,
            image_index=slots,
            memory_format=torch.channels_last,
        )  # (A or b, 3, K, K)
        return self._passes.focus(patches)

    def _normalise(self, images: Tensor) -> Tensor:
        if images.dtype == torch.uint8:
            return self._classifier.preprocessing.normalise(images, self._dtype)
        return images.to(self._dtype)


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """From the host without waiting for what the device is doing."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _to_pinned(tensor: Tensor) -> Tensor:
    target = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return target.copy_(tensor, non_blocking=True)

"""Algorithm 1 for a batch: what an image does not need is not computed."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from anchornet_ext._images import require_images
from anchornet_ext.ops import gather_patches
from anchornet_ext.ops._calls import images_in_turn
from anchornet_ext.policy.exit_policy import ExitPolicy

from .classification import Classification, Findings, SeenPlaces
from .exit_rules import ExitRules, exit_rules, listed
from .exit_state import ExitState
from .lookahead import Lookahead, checked_lookahead, patches_together
from .passes import (
    Passes,
    available_patches,
    channels_last,
    check_image_size,
    check_logits,
    map_size,
    plain_passes,
)

if TYPE_CHECKING:
    from .two_stage import TwoStageClassifier

_TRAINING = attrgetter("training")


def classify(
    classifier: TwoStageClassifier,
    images: Tensor,
    thresholds: Sequence[float] | None = None,
    exit_at: int | None = None,
    *,
    policy: ExitPolicy | None = None,
    lookahead: Lookahead = 1,
) -> Classification:
    """Runs Algorithm 1 on a batch with real early exit.

    The glance sees every image, AnchorNet those that the glance left, and the focus network at each
    step one patch of every image that is still there. Between the steps the batch is compacted on
    the device; the host reads one number, how many stay. An image leaves after input t when its
    confidence is above thresholds[t - 1], and at the last exit in any case. Its answer is what it
    was predicted to be there or, if the policy says so, where it was surest.

    The networks run in eval mode without gradients, and their modes are put back afterwards. The
    fastest classifier is the folded one (`TwoStageClassifier.fold`): its AnchorNet has no batch
    norm and no 512-channel map, and its weights are in channels_last, as the inputs here are.

    Args:
        classifier: the networks and settings.
        images: (B, 3, H, W) floating point, normalised, or uint8 as `Preprocessing.crop` makes
            them, which are normalised on the way into each pass; H and W at least the patch size.
            B may be 0. On images so small that AnchorNet's grid has fewer than `num_patches`
            locations, the sequence ends with the patches there are.
        thresholds: T - 1 floats for exits 1..T-1: 1 or more never lets an image leave, below 0
            always does. Short for `policy=ExitPolicy(thresholds)`, so without temperatures and with
            the answer of the last input.
        exit_at: anytime prediction: every image leaves at this exit, 1 to T, whatever the policy's
            thresholds; its temperatures and its answer rule hold. Not together with `thresholds`.
        policy: thresholds, temperatures and answer rule. None: the classifier's own policy, without
            which no image leaves early.
        lookahead: how many patches of an image a pass sees: one number, or those of its passes in
            their order, of which the last holds for all that follow. More than one at a time is
            faster where the batch is small and loses what lies beyond an image's exit; see
            `lookahead.best_lookahead`. "free": as many as no image can leave between, with
            `exit_at` say, so that nothing is lost. The answers are the same, up to what rounding
            depends on the batch.

    Raises:
        ValueError: images of a wrong shape, thresholds that are NaN or not T - 1, a policy for
            another number of exits, `exit_at` out of 1..T, thresholds together with `exit_at` or
            with a policy, a lookahead below 1, or networks that differ in their classes.
        TypeError: images are neither uint8 nor, outside of autocast, in AnchorNet's dtype.
    """
    check_images(classifier, images, uint8=True)
    modules = classifier.network_modules()
    plan = _planned(classifier, (images.shape[2], images.shape[3]), thresholds, exit_at, policy)
    sizes = checked_lookahead(lookahead)
    with torch.no_grad(), evaluating(modules):
        return _classify(classifier, images, plan, sizes)


@dataclass(frozen=True)
class _Plan:
    """What does not depend on the images but on their size.

    Attributes:
        rules: when they leave.
        passes: the networks.
        macs: what leaving at exit 1, ..., T costs.
        full_macs: what leaving at the last exit that there is costs.
        map_size: (h, w) of an activation map.
        patch_size: in pixels.
        num_classes: of all three networks.
    """

    rules: ExitRules
    passes: Passes
    macs: tuple[int, ...]
    full_macs: int
    map_size: tuple[int, int]
    patch_size: int
    num_classes: int


def _planned(
    classifier: TwoStageClassifier,
    image_size: tuple[int, int],
    thresholds: Sequence[float] | None,
    exit_at: int | None,
    policy: ExitPolicy | None,
) -> _Plan:
    """The plan for a call, or that of the last call if nothing has changed since then.

    Making one takes as long as a fifth of a small network's pass over an image.
    """
    if thresholds is not None:
        thresholds = listed(thresholds)
    iou = classifier.iou_threshold
    key = (
        image_size,
        thresholds,
        exit_at,
        policy,
        classifier.policy,
        classifier.num_patches,
        iou if isinstance(iou, (int, float)) else tuple(iou),
        classifier.glance_size,
        classifier.criterion,
    )
    # A threshold that is no plain number, a tensor say, could change.
    plain = thresholds is None or all(type(value) in (float, int) for value in thresholds)
    last = classifier.last_plan
    if plain and last is not None and last[0] == key:
        plan: _Plan = last[1]
        return plan
    passes = plain_passes(classifier, image_size)
    num_patches = available_patches(classifier, image_size)
    rules = exit_rules(classifier, num_patches, thresholds, exit_at, policy)
    macs = classifier.macs_per_exit(image_size)
    plan = _Plan(
        rules,
        passes,
        macs,
        macs[num_patches],
        map_size(classifier, image_size),
        classifier.patch_size,
        classifier.num_classes,
    )
    if plain:
        classifier.last_plan = key, plan
    return plan


def _classify(
    classifier: TwoStageClassifier, images: Tensor, plan: _Plan, sizes: Sequence[int] = (1,)
) -> Classification:
    batch = len(images)
    device = images.device
    rules, passes = plan.rules, plan.passes
    # Bytes stay bytes until a pass takes them in: the glance a small picture, the focus network
    # patches, and AnchorNet those images that it sees.
    normalisation = classifier.normalisation() if images.dtype == torch.uint8 else {}
    dtype = normalisation.get("dtype", images.dtype)
    if dtype != torch.float64:  # the sums of half precision are float32
        dtype = torch.float32
    state = ExitState(batch, plan.num_classes, rules, dtype, device)
    seen = SeenPlaces(batch, rules.num_exits, device)

    active = images_in_turn(batch, 1, images)  # nobody writes to it
    cost = list(plan.macs)  # of an image by its exit
    step, turn = 1, 0
    while step <= rules.last and len(active) > 0:
        if step == 1:
            size = 1
            logits = passes.glance(classifier.glance_input(images))
        else:
            if step == 2:
                places = passes.localise(_whole_images(images, active, normalisation))
                seen.note(active, places)
            size = patches_together(rules, step, len(active), sizes, turn)
            turn += 1
            patches = gather_patches(
                images,
                seen.of_inputs(active, step, size),
                plan.patch_size,
                image_index=active.repeat(size) if size > 1 else active,
                memory_format=torch.channels_last,
                **normalisation,
            )  # (size A, 3, K, K), step by step
            logits = passes.focus(patches)
        check_logits(logits, plan.num_classes, "glance" if step == 1 else "focus")
        for exit_step in range(step, step + size):
            cost[exit_step - 1] = plan.macs[step + size - 2]
        active = _decide(state, rules, active, logits, step, size)
        step += size

    return Classification.of(Findings(state, seen, cost, plan.full_macs, plan.map_size))


def _decide(
    state: ExitState, rules: ExitRules, active: Tensor, logits: Tensor, step: int, size: int
) -> Tensor:
    """Lets images leave after `size` inputs from `step` on, (size A, n), and returns who stays."""
    group = active
    each = (logits,) if size == 1 else logits.reshape(size, len(active), -1).unbind()
    for current, said in enumerate(each, start=step):
        if len(active) < len(group):
            row = torch.empty(len(state), dtype=torch.int64, device=active.device)
            row[group] = torch.arange(len(group), device=active.device)
            said = said[row[active]]
        decided = state.note(active, said, current)
        if rules.can_leave(current) and current < rules.last:
            staying = read_count(decided.num_active)
            if staying < len(active):
                active = decided.active[:staying]
            if staying == 0:
                break
    return active


def read_count(count: Tensor) -> int:
    """The one number of a step that the host waits for."""
    return int(count)


def _whole_images(images: Tensor, active: Tensor, normalisation: dict[str, Any]) -> Tensor:
    """(A, 3, H, W) in channels_last, uint8 images normalised."""
    if not normalisation and len(active) == len(images):
        return channels_last(images)  # which they may be already
    return gather_patches(
        images,
        active.new_zeros((len(active), 2)),
        images.shape[2:],
        image_index=active,
        memory_format=torch.channels_last,
        **normalisation,
    )


def check_images(classifier: TwoStageClassifier, images: Tensor, *, uint8: bool = False) -> None:
    """Raises unless `images` are (B, 3, H, W), in AnchorNet's dtype and at least a patch large.

    With `uint8` they may be bytes as well; under autocast in any floating point dtype.
    """
    require_images(images)
    if not images.is_floating_point() and not (uint8 and images.dtype == torch.uint8):
        raise TypeError(
            f"images must be floating point and normalised (see Preprocessing)"
            f"{', or uint8' if uint8 else ''}, got {images.dtype}"
        )
    dtype = classifier.anchor.classifier.weight.dtype
    differs = images.is_floating_point() and images.dtype != dtype
    if differs and not torch.is_autocast_enabled(images.device.type):
        raise TypeError(
            f"images must be {dtype}, as AnchorNet's weights are"
            f"{', or uint8' if uint8 else ''}, got {images.dtype}"
        )
    check_image_size(classifier, (images.shape[2], images.shape[3]))


class evaluating:
    """Puts each of the modules, and not those inside it, into eval mode, and back afterwards.

    Used as `with evaluating(modules):`. Several threads may do so with the same modules: they go
    back when the last of them is done.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self._modules = modules if isinstance(modules, Sequence) else list(modules)

    def __enter__(self) -> None:
        self._held: list[nn.Module] = []
        with _BORROWING:
            # Most often none trains. Asked in this way, hundreds answer in microseconds.
            if not _BORROWED and not any(map(_TRAINING, self._modules)):
                return
            self._held = [m for m in self._modules if m.training or id(m) in _BORROWED]
            for part in self._held:
                _BORROWED[id(part)] = _BORROWED.get(id(part), 0) + 1
                part.training = False

    def __exit__(self, *exception: object) -> None:
        with _BORROWING:
            for part in self._held:
                _BORROWED[id(part)] -= 1
                if _BORROWED[id(part)] == 0:
                    del _BORROWED[id(part)]
                    part.training = True


def in_training(module: nn.Module) -> bool:
    """Whether a module is in training mode, or will be again when `evaluating` is done with it."""
    with _BORROWING:
        return module.training or id(module) in _BORROWED


#: How many are using the modules that `evaluating` has put into eval mode, by their ids.
_BORROWED: dict[int, int] = {}
_BORROWING = threading.Lock()

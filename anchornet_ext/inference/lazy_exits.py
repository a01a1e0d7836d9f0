"""Early exit in networks with intermediate classifiers: what an image does not need is not run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from anchornet_ext.models.exits import Progress
from anchornet_ext.policy.exit_policy import ExitPolicy

from .early_exit import evaluating, in_training
from .exit_rules import chosen_policy


class LazyNetwork(Protocol):
    """A system that goes from exit to exit, as `ExitNetwork` does."""

    @property
    def num_classes(self) -> int: ...
    @property
    def num_exits(self) -> int: ...
    def begin(self, images: Tensor) -> Progress: ...
    def macs_per_exit(self, image_size: tuple[int, int]) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class ExitClassification:
    """What `classify` found for B images, n classes, T exits; all on the images' device.

    Attributes:
        label: (B,) int64, index of the predicted class: that of `answer_step`.
        probabilities: (B, n) float32, softmax of the logits at `answer_step`, divided by that
            exit's temperature.
        exit_step: (B,) int64, the exit where the image left, 1 to T.
        answer_step: (B,) int64, the exit where the answer was found: `exit_step`, unless the
            policy's answer is "surest".
        confidence: (B, T) float32, the largest probability at each exit, NaN where not reached.
        step_label: (B, T) int64, the class predicted at each exit, -1 where not reached.
        macs: (B,) int64, multiply-adds that each image cost.
        full_macs: multiply-adds of an image of this size that goes to the last exit.
    """

    label: Tensor
    probabilities: Tensor
    exit_step: Tensor
    answer_step: Tensor
    confidence: Tensor
    step_label: Tensor
    macs: Tensor
    full_macs: int


def classify(
    network: LazyNetwork,
    images: Tensor,
    thresholds: Sequence[float] | None = None,
    exit_at: int | None = None,
    *,
    policy: ExitPolicy | None = None,
) -> ExitClassification:
    """Runs a batch with real early exit.

    After each exit the images that leave are taken out of the batch, so that only what is left goes
    on; the host reads once per exit which these are. An image leaves at exit t when the largest
    softmax probability of that exit's own logits is above thresholds[t - 1], and at the last exit
    in any case. (RANet's and MSDNet's authors let an image leave at a confidence equal to the
    threshold as well; here it is `>` as in every system of this package.)

    The network runs without gradients and in eval mode: one in training mode is put into it and
    back afterwards, one in eval mode is taken to be in it with all its parts. What is found for an
    image does not depend on the others, but for rounding: a convolution of another batch may sum in
    another order.

    Args:
        network: an `ExitNetwork`, or anything that begins as one.
        images: (B, 3, H, W) floating point, normalised. B may be 0.
        thresholds: T - 1 floats for exits 1..T-1: 1 or more never lets an image leave, below 0
            always does. None, without a policy: no image leaves early. Short for
            `policy=ExitPolicy(thresholds)`.
        exit_at: anytime prediction: every image leaves at this exit, 1 to T, whatever the policy's
            thresholds. Not together with `thresholds`.
        policy: thresholds, temperatures and answer rule.

    Raises:
        ValueError: images of a wrong shape, thresholds that are NaN or not T - 1, a policy for
            another number of exits, `exit_at` out of 1..T, or thresholds together with `exit_at` or
            with a policy.
        TypeError: images are not floating point.
    """
    policy = chosen_policy(network.num_exits, thresholds, exit_at, policy)
    limits = (*policy.thresholds, math.inf)
    last = network.num_exits if exit_at is None else exit_at
    if exit_at is not None:
        limits = (math.inf,) * last
    # Looking at each of a thousand modules takes as long as a small network's first exit.
    modules: Iterable[nn.Module] = ()
    if isinstance(network, nn.Module) and in_training(network):
        modules = network.modules()
    with torch.no_grad(), evaluating(modules):
        return _classify(network, images, policy, limits[:last])


def _classify(
    network: LazyNetwork, images: Tensor, policy: ExitPolicy, limits: Sequence[float]
) -> ExitClassification:
    progress = network.begin(images)  # checks the images
    batch, num_exits = len(images), network.num_exits
    device = images.device
    # (B, ...) rows, filled as exits are reached.
    confidence = torch.full((batch, num_exits), math.nan, device=device)
    step_label = torch.full((batch, num_exits), -1, dtype=torch.int64, device=device)
    probabilities = torch.empty(batch, network.num_classes, device=device)
    exit_step = torch.ones(batch, dtype=torch.int64, device=device)
    answer_step = torch.ones_like(exit_step)
    best = torch.full((batch,), -math.inf, device=device)

    active = torch.arange(batch, device=device)
    for step, limit in enumerate(limits, start=1):
        if len(active) == 0:
            break
        logits = progress.next_logits().float()  # (A, n)
        if policy.temperatures is not None:
            logits = logits / policy.temperature(step)
        current = logits.softmax(dim=1)
        sure, label = current.max(dim=1)
        # Writing to all rows takes half as long as to as many chosen ones.
        rows: Tensor | slice = active if len(active) < batch else slice(None)
        confidence[rows, step - 1] = sure
        step_label[rows, step - 1] = label
        exit_step[rows] = step
        if policy.answer == "surest":
            surer = sure.nan_to_num(nan=-math.inf)  # NaN is the least sure
            better = surer >= best[rows]  # of equal ones the later
            best[active[better]] = surer[better]
            rows, current = active[better], current[better]
        probabilities[rows] = current
        answer_step[rows] = step
        if step == len(limits):
            break
        stay = (~(sure > limit)).nonzero()[:, 0]  # the host waits here for how many
        if len(stay) < len(active):
            active = active[stay]
            if len(active) > 0:
                progress.keep(stay)

    macs = network.macs_per_exit((images.shape[2], images.shape[3]))
    return ExitClassification(
        label=step_label.gather(1, answer_step[:, None] - 1)[:, 0],
        probabilities=probabilities,
        exit_step=exit_step,
        answer_step=answer_step,
        confidence=confidence,
        step_label=step_label,
        macs=torch.tensor(macs, device=device)[exit_step - 1],
        full_macs=macs[-1],
    )

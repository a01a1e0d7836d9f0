"""A network with exits as what is evaluated."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anchornet_ext.data.transforms import Preprocessing
from anchornet_ext.inference.early_exit import evaluating
from anchornet_ext.inference.exit_rules import chosen_policy
from anchornet_ext.inference.lazy_exits import ExitClassification, LazyNetwork, classify
from anchornet_ext.models.tuning import tune
from anchornet_ext.policy.exit_policy import ExitPolicy


class NetworkExits:
    """A network that goes from exit to exit, ready to be evaluated (see `ExitSystem`).

    It is copied to the device and tuned like every network that is timed (`models.tuning.tune`):
    as a whole, or, where it has `whole_networks(image_size)`, each of those by itself. Operations
    can be fused in these, which is not possible in one that goes from exit to exit.

    Args:
        network: maps images (B, 3, S, S), and begins as `LazyNetwork` says.
        name, checksum: see `ExitSystem`.
        class_names: of the n classes.
        preprocessing: how a photo becomes its input; its crop is S.
        device: where it runs.
        policy: when images leave unless told otherwise.
        about: whatever else a report should say.
        explanation: what kind of system it is, for a reader who does not know it.
    """

    #: `classify` divides an exit's logits by a policy's temperature, as the table's grid does.
    temperature_scales = True
    #: Whether images that leave at one exit cost differently.
    costs_vary = False

    def __init__(
        self,
        network: nn.Module,
        name: str,
        checksum: str,
        class_names: Sequence[str],
        preprocessing: Preprocessing,
        device: torch.device,
        policy: ExitPolicy | None = None,
        about: Mapping[str, Any] | None = None,
        explanation: str | None = None,
    ) -> None:
        self.name = name
        self.checksum = checksum
        self.class_names: Sequence[str] = tuple(class_names)
        self.num_classes = len(self.class_names)
        self.preprocessing = preprocessing
        self.device = device
        self.policy = policy
        self.explanation = explanation
        side = preprocessing.crop_size
        self.about: Mapping[str, Any] = {"image_size": side, **(about or {})}
        tuned: Any = _tuned(network, (side, side)).to(device)
        self._module: nn.Module = tuned
        self.network: LazyNetwork = tuned

    @property
    def num_exits(self) -> int:
        """T."""
        return self.network.num_exits

    def macs_per_exit(self) -> tuple[int, ...]:
        """Counted, at the size of the crop."""
        side = self.preprocessing.crop_size
        return self.network.macs_per_exit((side, side))

    def anytime_logits(self, images: Tensor) -> Tensor:
        """Each exit's own logits, (T, B, n), as an image that comes so far would get them."""
        with torch.no_grad(), evaluating(self._module.modules()):
            progress = self.network.begin(_channels_last(images))
            return torch.stack([progress.next_logits().float() for _ in range(self.num_exits)])

    def classify(
        self,
        images: Tensor,
        thresholds: Sequence[float] | None = None,
        exit_at: int | None = None,
        *,
        policy: ExitPolicy | None = None,
    ) -> ExitClassification:
        """Real early exit; without thresholds and policy by the system's own (see `lazy_exits`).

        With `exit_at`, too: its thresholds do not matter then, its temperatures and its rule for
        the answer do, as in the two-stage classifier.
        """
        policy = chosen_policy(self.num_exits, thresholds, exit_at, policy, self.policy)
        return classify(self.network, _channels_last(images), exit_at=exit_at, policy=policy)


def _tuned(network: nn.Module, image_size: tuple[int, int]) -> nn.Module:
    whole: Any = getattr(network, "whole_networks", None)
    if whole is None:
        return tune(network, image_size=image_size).network
    copied = copy.deepcopy(network)
    for name, size in whole(image_size).items():
        copied.set_submodule(name, tune(copied.get_submodule(name), image_size=size))
    return copied


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images

"""A plain classification network as what is evaluated."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anchornet_ext.data.transforms import Preprocessing
from anchornet_ext.models import build_backbone, require_input_size
from anchornet_ext.models.backbones import pretrained_classes
from anchornet_ext.models.single_exit import SingleExit
from anchornet_ext.policy.exit_policy import ExitPolicy
from anchornet_ext.training.checkpoint import load_weights

from .network_exits import NetworkExits


class PlainNetwork(NetworkExits):
    """A plain classification network: one exit, after the whole image (see `ExitSystem`).

    It is copied to the device and tuned in the same way as the two-stage classifier's networks, so
    that the two can be compared by the clock.

    Args:
        network: (B, 3, S, S) -> (B, n).
        name: see `ExitSystem`.
        preprocessing: how a photo becomes its input; its crop is S.
        class_names: its n classes, in the order of the logits.
        device: where it runs.
        about: added to what is said of it.
        checksum: see `ExitSystem`; None: of the weights as they are given, which tuning rounds, and
            of `preprocessing`.
        policy, explanation: see `NetworkExits`.

    Raises:
        ValueError: the network does not take images of that size.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        preprocessing: Preprocessing,
        class_names: Sequence[str],
        device: torch.device | str = "cpu",
        about: Mapping[str, Any] | None = None,
        *,
        checksum: str | None = None,
        policy: ExitPolicy | None = None,
        explanation: str | None = None,
    ) -> None:
        require_input_size(network, preprocessing.crop_size)
        super().__init__(
            SingleExit(network, len(class_names), name).eval(),
            name,
            _checksum(network, preprocessing) if checksum is None else checksum,
            class_names,
            preprocessing,
            torch.device(device),
            policy,
            about,
            explanation,
        )

    @classmethod
    def load(
        cls,
        backbone: str,
        class_names: Sequence[str],
        preprocessing: Preprocessing,
        *,
        weights: Path | None = None,
        pretrained: bool = False,
        device: torch.device | str = "cpu",
    ) -> PlainNetwork:
        """A backbone with trained weights: of a safetensors file, or the published ones.

        Raises:
            ValueError: an unknown backbone, weights that do not fit it and its classes, published
                weights of another number of classes, or neither weights nor published ones.
            RuntimeError: the published weights could not be downloaded.
        """
        if (weights is not None) == pretrained:
            raise ValueError(f"{backbone} needs weights: either a file or the published ones")
        if pretrained and (published := pretrained_classes(backbone)) != len(class_names):
            raise ValueError(
                f"the published weights of {backbone} are for {published} classes, there are "
                f"{len(class_names)} here"
            )
        network = build_backbone(backbone, len(class_names), pretrained)
        if weights is not None:
            load_weights(network, weights)
        about = {
            "backbone": backbone,
            "weights": "published" if weights is None else str(weights),
        }
        name = f"{backbone} at {preprocessing.crop_size}"
        return cls(network, name, preprocessing, class_names, device, about)

    @property
    def tuned(self) -> Callable[[Tensor], Tensor]:
        """The network itself, tuned: (B, 3, S, S) -> (B, n)."""
        network: Any = self.network
        tuned: Callable[[Tensor], Tensor] = network.network
        return tuned


def _checksum(network: nn.Module, preprocessing: Preprocessing) -> str:
    """Of the architecture's weights, bit by bit, and of how photos are prepared."""
    digest = hashlib.sha256(repr((type(network).__name__, preprocessing)).encode())
    for key, value in network.state_dict().items():
        plain = value.detach().cpu().contiguous()
        digest.update(f"{key} {plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

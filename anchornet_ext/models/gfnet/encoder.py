"""The encoders f_G and f_L of GFNet: a backbone that also gives its last feature map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision import models as torchvision_models

from anchornet_ext._meta import meta_images, meta_twin
from anchornet_ext.models.backbones import build_backbone


@dataclass(frozen=True)
class Family:
    """How GFNet is built around the backbones of one family (appendix A.1).

    Attributes:
        recurrent: classify with a GRU, else with one linear layer per step over all features.
        policy_conv: the proposal network reduces the map to 32 channels first.
        policy_hidden: hidden units of the proposal network.
    """

    recurrent: bool
    policy_conv: bool
    policy_hidden: int


_HEAVY = Family(recurrent=True, policy_conv=False, policy_hidden=1024)
_REGNET = Family(recurrent=True, policy_conv=True, policy_hidden=256)
_MOBILE = Family(recurrent=False, policy_conv=True, policy_hidden=256)


@dataclass(frozen=True)
class _Parts:
    """A backbone taken apart: images -> map -> vector -> logits."""

    family: Family
    features: Callable[[Any, Tensor], Tensor]
    pool: Callable[[Any, Tensor], Tensor]
    last: Callable[[Any], nn.Module]


def _resnet_features(net: Any, x: Tensor) -> Tensor:
    x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
    out: Tensor = net.layer4(net.layer3(net.layer2(net.layer1(x))))
    return out


def _average(net: Any, x: Tensor) -> Tensor:
    return x.mean(dim=(2, 3))


def _mobilenet_pool(net: Any, x: Tensor) -> Tensor:
    # All of the classifier but its last layer.
    out: Tensor = net.classifier[:-1](x.mean(dim=(2, 3)))
    return out


def _timm_pool(net: Any, x: Tensor) -> Tensor:
    out: Tensor = net.forward_head(x, pre_logits=True)
    return out


_PARTS: dict[type, _Parts] = {
    torchvision_models.ResNet: _Parts(_HEAVY, _resnet_features, _average, lambda net: net.fc),
    torchvision_models.DenseNet: _Parts(
        _HEAVY,
        lambda net, x: nn.functional.relu(net.features(x)),
        _average,
        lambda net: net.classifier,
    ),
    torchvision_models.RegNet: _Parts(
        _REGNET, lambda net, x: net.trunk_output(net.stem(x)), _average, lambda net: net.fc
    ),
    torchvision_models.MobileNetV3: _Parts(
        _MOBILE,
        lambda net, x: net.features(x),
        _mobilenet_pool,
        lambda net: net.classifier[-1],
    ),
    torchvision_models.EfficientNet: _Parts(
        _MOBILE,
        lambda net, x: net.features(x),
        _mobilenet_pool,
        lambda net: net.classifier[-1],
    ),
}
_TIMM = _Parts(
    _MOBILE,
    lambda net, x: net.forward_features(x),
    _timm_pool,
    lambda net: net.get_classifier(),
)


def _parts_of(network: nn.Module, name: str) -> _Parts:
    for kind, parts in _PARTS.items():
        if isinstance(network, kind):
            return parts
    if name.startswith("timm/"):
        return _TIMM
    known = ", ".join(kind.__name__ for kind in _PARTS)
    raise ValueError(f"GFNet takes a backbone of {known} or of timm; {name!r} is none")


class Encoder(nn.Module):
    """A backbone whose feature map and feature vector can be had before its last layer.

    Args:
        name: of the backbone, as `build_backbone` takes it; torchvision's ResNet, DenseNet, RegNet,
            MobileNetV3 or EfficientNet families, or one of timm.
        num_classes: n of its last layer.
        pretrained: see `build_backbone`.

    `forward`: images (B, 3, P, P) -> (map (B, C, h, w), vector (B, F)).

    Raises:
        ValueError: the backbone is unknown or of no family that GFNet can take.
    """

    def __init__(self, name: str, num_classes: int, pretrained: bool = False) -> None:
        super().__init__()
        self.network = build_backbone(name, num_classes, pretrained)
        self._parts = _parts_of(self.network, name)

    @property
    def family(self) -> Family:
        """What GFNet is built with around it unless told otherwise."""
        return self._parts.family

    @property
    def last_layer(self) -> nn.Module:
        """The backbone's own classifier of feature vectors, (B, F) -> (B, n)."""
        return self._parts.last(self.network)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """See the class."""
        features = self._parts.features(self.network, images)
        return features, self._parts.pool(self.network, features)

    def sizes(self, patch_size: int) -> tuple[tuple[int, int, int], int]:
        """((C, h, w), F) of images of P x P pixels, without computing anything.

        Raises:
            ValueError: the backbone takes no images of that size, or gives no map.
        """
        twin = meta_twin(self)
        try:
            with torch.no_grad():
                features, vector = twin(meta_images(twin, (1, 3, patch_size, patch_size)))
        except (RuntimeError, AssertionError, ValueError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ValueError(
                f"{type(self.network).__name__} does not take images of "
                f"3x{patch_size}x{patch_size}: {reason[0]}"
            ) from error
        if features.dim() != 4:
            raise ValueError(
                f"GFNet needs a map (B, C, h, w), {type(self.network).__name__} gives "
                f"{tuple(features.shape)}"
            )
        return (features.shape[1], features.shape[2], features.shape[3]), vector.shape[1]

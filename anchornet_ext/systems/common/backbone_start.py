"""Where a backbone's weights come from before it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from anchornet_ext._options import option
from anchornet_ext.models import build_backbone
from anchornet_ext.training.checkpoint import load_weights


@dataclass(frozen=True)
class BackboneOptions:
    """A backbone and what it starts from: the options of systems that are made of one."""

    backbone: str = option(
        "",
        "a torchvision classification model, timm/NAME, or cifar/resnet32 and its like",
        metavar="NAME",
        required=True,
    )
    pretrained: bool = option(
        False, "start from the backbone's published ImageNet weights", start=True
    )
    backbone_weights: Path | None = option(
        None, "start the backbone from a safetensors file", convert=Path, metavar="FILE", start=True
    )

    def __post_init__(self) -> None:
        if self.pretrained and self.backbone_weights is not None:
            raise ValueError("--pretrained and --backbone-weights exclude each other")

    @property
    def has_weights(self) -> bool:
        """Whether the backbone need not be trained from scratch."""
        return self.pretrained or self.backbone_weights is not None


def initial_backbone(
    name: str, num_classes: int, *, pretrained: bool, weights: Path | None = None
) -> nn.Module:
    """A backbone to be trained.

    Args:
        name: of the backbone.
        num_classes: of its classifier.
        pretrained: whether it starts from its published weights.
        weights: otherwise the file that it starts from; None: random weights.

    Raises:
        ValueError: the name is unknown, or the file is missing or does not fit.
        OSError: the published weights cannot be downloaded.
    """
    if pretrained:
        try:
            return build_backbone(name, num_classes, pretrained=True)
        except RuntimeError as error:
            raise OSError(str(error)) from error
    network = build_backbone(name, num_classes)
    if weights is not None:
        load_weights(network, weights)
    return network


def require_start(
    name: str, num_classes: int, *, pretrained: bool, weights: Path | None = None
) -> None:
    """Makes sure that `initial_backbone` will find what it is to start from.

    Stages that need none may come first, and take hours. Published weights are downloaded here if
    they are not there yet.

    Raises:
        ValueError, OSError: as `initial_backbone`.
    """
    if pretrained or weights is not None:
        initial_backbone(name, num_classes, pretrained=pretrained, weights=weights)

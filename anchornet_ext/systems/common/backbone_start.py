"""Where a backbone's weights come from before it is trained."""

from __future__ import annotations

from torch import nn

from anchornet_ext.models import build_backbone


def pretrained_backbone(name: str, num_classes: int) -> nn.Module:
    """A backbone with its published weights and a classifier for `num_classes`.

    Raises:
        ValueError: the name is unknown.
        OSError: the weights cannot be downloaded.
    """
    try:
        return build_backbone(name, num_classes, pretrained=True)
    except RuntimeError as error:
        raise OSError(str(error)) from error

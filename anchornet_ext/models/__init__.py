"""AnchorNet, the networks that classify patches, and what belongs to them."""

from .anchornet import AnchorNet, FoldedAnchorNet
from .backbones import build_backbone, require_input_size
from .localise import Localisation, localise

__all__ = [
    "AnchorNet",
    "FoldedAnchorNet",
    "Localisation",
    "build_backbone",
    "localise",
    "require_input_size",
]

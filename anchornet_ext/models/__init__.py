"""AnchorNet, the networks that classify patches, and what belongs to them."""

from .anchornet import AnchorNet, FoldedAnchorNet
from .backbones import build_backbone, require_input_size
from .localise import Localisation, localise
from .macs import count_macs
from .released import load_released_anchornet, load_released_classifier

__all__ = [
    "AnchorNet",
    "FoldedAnchorNet",
    "Localisation",
    "build_backbone",
    "count_macs",
    "load_released_anchornet",
    "load_released_classifier",
    "localise",
    "require_input_size",
]

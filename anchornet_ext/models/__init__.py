"""AnchorNet, the networks that classify patches, and what belongs to them."""

from .anchornet import AnchorNet, FoldedAnchorNet
from .backbones import build_backbone, require_input_size

__all__ = ["AnchorNet", "FoldedAnchorNet", "build_backbone", "require_input_size"]

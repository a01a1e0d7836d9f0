"""GFNet: Glance and Focus (Wang et al., NeurIPS 2020, arXiv 2010.05300)."""

from .gfnet import GFNet, GFNetProgress
from .proposal import ProposalNetwork
from .released import load_released_gfnet

__all__ = ["GFNet", "GFNetProgress", "ProposalNetwork", "load_released_gfnet"]

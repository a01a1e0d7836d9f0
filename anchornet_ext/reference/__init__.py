"""The operators in plain PyTorch and Python: slow, obvious, the specification of the kernels."""

from .cells import convolve_cells, fuse_cells
from .class_activation_map import class_activation_map
from .exit_step import exit_step
from .inverted_residuals import inverted_residuals
from .map_program import MapStep, run_map_program
from .maps import convolve_maps
from .mbconv_chain import mbconv_chain
from .patches import gather_patches, scatter_patches, scatter_patches_onto
from .resize_images import resize_images
from .select_patches import select_patches

__all__ = [
    "MapStep",
    "class_activation_map",
    "convolve_cells",
    "convolve_maps",
    "exit_step",
    "fuse_cells",
    "gather_patches",
    "inverted_residuals",
    "mbconv_chain",
    "resize_images",
    "run_map_program",
    "scatter_patches",
    "scatter_patches_onto",
    "select_patches",
]

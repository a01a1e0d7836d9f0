"""The operators: documented functions over the native kernels."""

from anchornet_ext.reference.inverted_residuals import (
    Convolution,
    GlobalMean,
    InvertedResidual,
    SqueezeExcitation,
)

from .cells import CellWeights, convolve_cells, fuse_cells, pack_cells
from .class_activation_map import class_activation_map
from .exit_step import ExitStep, exit_step
from .gather_patches import gather_patches
from .inverted_residuals import PackedLayers, inverted_residuals, pack_layers
from .map_program import MapProgram, pack_map_program, run_map_program
from .maps import MapWeights, convolve_maps, pack_maps
from .mbconv_chain import MBConvBlock, mbconv_chain
from .resize_images import resize_images
from .scatter_patches import scatter_patches, scatter_patches_onto
from .select_patches import PatchSelection, select_patches

__all__ = [
    "CellWeights",
    "Convolution",
    "ExitStep",
    "GlobalMean",
    "InvertedResidual",
    "MBConvBlock",
    "MapProgram",
    "MapWeights",
    "PackedLayers",
    "PatchSelection",
    "SqueezeExcitation",
    "class_activation_map",
    "convolve_cells",
    "convolve_maps",
    "exit_step",
    "fuse_cells",
    "gather_patches",
    "inverted_residuals",
    "mbconv_chain",
    "pack_cells",
    "pack_map_program",
    "pack_layers",
    "pack_maps",
    "resize_images",
    "run_map_program",
    "scatter_patches",
    "scatter_patches_onto",
    "select_patches",
]

"""SAR: spatially adaptive feature refinement (Han et al.), from the paper; there is no public code.

A cheap base branch sees the whole map at a lower resolution; a refinement branch works at the full
resolution, in channel groups, on the cells that each group's mask selects.
"""

from .activation import set_activation
from .cost import SARCost, sar_cost
from .module import ModuleOptions, SARModule
from .network import Architecture, SARNetwork, Stage, mean_activation
from .presets import ARCHITECTURES, build_sar
from .region_selection import decide, sample
from .schedules import refinement_loss, target_rate, temperature
from .sparse import SparseSAR

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "ModuleOptions",
    "SARCost",
    "SARModule",
    "SARNetwork",
    "SparseSAR",
    "Stage",
    "build_sar",
    "decide",
    "mean_activation",
    "refinement_loss",
    "sample",
    "sar_cost",
    "set_activation",
    "target_rate",
    "temperature",
]

"""The operators: documented functions over the native kernels."""

from .exit_step import ExitStep, exit_step
from .gather_patches import gather_patches

__all__ = ["ExitStep", "exit_step", "gather_patches"]

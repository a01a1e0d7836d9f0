"""The operators: documented functions over the native kernels."""

from .exit_step import ExitStep, exit_step

__all__ = ["ExitStep", "exit_step"]

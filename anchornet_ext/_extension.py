"""Loads the native libraries once and keeps the reason if they do not load."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch

_HOW_TO_BUILD = "run `pip install --no-build-isolation .` in the source folder to build it"

#: Why `_C` (operators' schemas and CPU kernels) could not be loaded; None when it is there.
load_error: ImportError | None = None
#: Why the CUDA kernels could not be loaded; None when they are loaded or were not wanted.
cuda_load_error: OSError | None = None
#: Whether the CUDA kernels are registered.
cuda_loaded = False


def _cuda_library() -> Path:
    return Path(__file__).parent / "_cuda.so"


def _load() -> None:
    global load_error, cuda_load_error, cuda_loaded
    try:
        importlib.import_module("anchornet_ext._C")
    except ImportError as error:
        load_error = error
        return
    if torch.version.cuda is not None and _cuda_library().exists():
        try:
            torch.ops.load_library(str(_cuda_library()))  # type: ignore[no-untyped-call]
            cuda_loaded = True
        except OSError as error:
            cuda_load_error = error


_load()


def available() -> bool:
    """Whether the native operators are registered."""
    return load_error is None


def require() -> None:
    """Raise one sentence that says what to do, with the loader's own error chained.

    Raises:
        ImportError: the native library is missing or does not load.
    """
    if load_error is not None:
        raise ImportError(
            f"anchornet_ext's native library is missing or does not load ({load_error}); "
            f"{_HOW_TO_BUILD}."
        ) from load_error


def require_device(device: torch.device) -> None:
    """Like `require`, and that there are kernels for `device`.

    Raises:
        ImportError: the native library, or its CUDA half for a CUDA device, does not load.
    """
    require()
    if device.type == "cuda" and not cuda_loaded:
        raise ImportError(
            "anchornet_ext was built without CUDA kernels or they do not load "
            f"({cuda_load_error or 'no _cuda.so in the package'}); set FORCE_CUDA=1 and "
            f"{_HOW_TO_BUILD}."
        ) from cuda_load_error


def build_info() -> dict[str, Any]:
    """What the native library was built with.

    Keys: version, torch_built_with, cuda_version, cuda_architectures, compiler.

    Raises:
        ImportError: the native library is missing or does not load.
    """
    require()
    module = importlib.import_module("anchornet_ext._C")
    info: dict[str, Any] = module.build_info()
    return info

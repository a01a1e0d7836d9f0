"""The CUDA kernels as operators for CPU tensors, compiled for the emulator beside this file.

`anchornet_ext_cuda_on_host::NAME` is the CUDA kernel of `anchornet_ext::NAME`.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from anchornet_ext import _extension
from anchornet_ext.ops import _cells_on_cuda

HERE = Path(__file__).resolve().parent
BUILD = HERE.parents[1] / "build" / f"cuda_on_host-{sys.implementation.cache_tag}"
NAMESPACE = "anchornet_ext_cuda_on_host"
OPERATORS = (
    "class_activation_map",
    "select_patches",
    "gather_patches",
    "scatter_patches",
    "scatter_patches_onto",
    "resize_images",
    "exit_step",
    "gather_cells",
    "finish_cells",
    "fuse_cells",
)
# Operators whose CUDA kernel is Python that calls those above.
COMPOSED = {"convolve_cells": _cells_on_cuda.convolve_cells}


def build() -> Path:
    """The library, built anew where a source has changed; by one process at a time."""
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    cmake, ninja = (shutil.which(name, path=path) for name in ("cmake", "ninja"))
    if cmake is None or ninja is None:
        raise RuntimeError("cmake and ninja are needed to build the CUDA kernels for the host")
    torch_folder = Path(torch.__file__).parent
    configure = [cmake, "-S", str(HERE), "-B", str(BUILD), "-G", "Ninja"]
    configure += [f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DTORCH_DIR={torch_folder}"]
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (configure, [cmake, "--build", str(BUILD)]):
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                raise RuntimeError(f"{' '.join(command)}\n{result.stdout}{result.stderr}")
    return _library()


def _library() -> Path:
    return BUILD / f"lib{NAMESPACE}.so"


class Emulator:
    """What can be set and asked of the emulator."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._library.cuda_on_host_error.restype = ctypes.c_char_p
        self._library.cuda_on_host_launches.restype = ctypes.c_int64

    def seed(self, seed: int) -> None:
        """Of the order in which blocks and threads run."""
        self._library.cuda_on_host_seed(ctypes.c_uint64(seed))

    @contextlib.contextmanager
    def only_blocks(self, first: int, last: int) -> Iterator[None]:
        """Launches run their `first` first and their `last` last blocks, and no others."""
        self._library.cuda_on_host_only_blocks(first, last)
        try:
            yield
        finally:
            self._library.cuda_on_host_only_blocks(0, 0)

    @property
    def launches(self) -> int:
        """Kernels launched so far."""
        count: int = self._library.cuda_on_host_launches()
        return count

    def take_error(self) -> str:
        """What was wrong on the host's side of an operator, and is forgotten by this; or ''."""
        error: bytes = self._library.cuda_on_host_error()
        return error.decode()


def emulator() -> Emulator:
    """Builds and loads the library, once; its operators are registered from then on.

    Raises:
        RuntimeError: it cannot be built; the message is the compiler's.
    """
    loaded = _load()
    if isinstance(loaded, RuntimeError):
        raise loaded
    return loaded


@functools.cache
def _load() -> Emulator | RuntimeError:
    """What failed is not tried again: every test would wait for the compiler."""
    _extension.require()
    try:
        library = build()
    except RuntimeError as error:
        return error
    torch.ops.load_library(str(library))
    definitions = torch.library.Library(NAMESPACE, "FRAGMENT")
    for name in OPERATORS:
        schema = str(getattr(torch.ops.anchornet_ext, name).default._schema)
        definitions.define(schema.removeprefix("anchornet_ext::"))
    definitions.define("broken(Tensor input, int what) -> Tensor")
    _KEPT.append(definitions)
    return Emulator(library)


_KEPT: list[torch.library.Library] = []


def checked(operator: Callable[..., Any]) -> Callable[..., Any]:
    """`operator`, one of the emulated, with every error of its kernels raised."""

    def call(*arguments: Any) -> Any:
        # The kernels must not count on what memory happens to hold.
        deterministic = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True)  # fills new tensors with NaN or the largest number
        try:
            result = operator(*arguments)
        except RuntimeError as error:
            if "cuda_on_host: " in str(error):
                raise RuntimeError(_with_source_lines(str(error))) from error
            raise
        finally:
            torch.use_deterministic_algorithms(deterministic)
            late = emulator().take_error()
        if late:
            raise RuntimeError(f"cuda_on_host: {late}")
        return result

    return call


def _with_source_lines(message: str) -> str:
    def look_up(found: re.Match[str]) -> str:
        command = ["addr2line", "-e", str(_library()), found.group(1)]
        try:
            line = subprocess.run(command, capture_output=True, text=True).stdout.strip()
        except OSError:  # without binutils the address has to do
            return found.group()
        return f"in {line}" if line else found.group()

    return re.sub(r"in code \+(0x[0-9a-f]+)", look_up, message)


def kernel(name: str) -> Callable[..., Any]:
    """The CUDA kernel of the operator `name`, for CPU tensors.

    Raises:
        RuntimeError: it did what a GPU's program must not do; the message says what and where.
    """
    emulator()
    return checked(getattr(getattr(torch.ops, NAMESPACE), name).default)


@contextlib.contextmanager
def in_place_of_cpu_kernels() -> Iterator[Emulator]:
    """anchornet_ext's operators run their CUDA kernels for CPU tensors."""
    with torch.library._scoped_library("anchornet_ext", "IMPL") as library:
        for name in OPERATORS:
            library.impl(name, kernel(name), "CPU", allow_override=True)
        for name, function in COMPOSED.items():
            library.impl(name, function, "CPU", allow_override=True)
        yield emulator()


if __name__ == "__main__":
    print(build())

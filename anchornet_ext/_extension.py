"""Loads the native libraries once and keeps the reason if they do not load."""

from __future__ import annotations

import importlib
import importlib.util
import struct
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


def _require_whole(library: Path, error: type[Exception]) -> None:
    """A library cut off by a full disk or a broken copy kills the process when it is mapped.

    ELF files end with the table of their sections, whose place and size are in the header.
    """
    with library.open("rb") as file:
        header = file.read(64)
    if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":  # not 64-bit little-endian ELF
        return  # the loader says what is wrong with it, if anything
    (table,) = struct.unpack_from("<Q", header, 0x28)
    entry_size, entries = struct.unpack_from("<HH", header, 0x3A)
    size, expected = library.stat().st_size, table + entry_size * entries
    if size < expected:
        raise error(f"{library} is cut off: {size} bytes of {expected}")


def _import_native() -> None:
    """Imports `_C` from this folder only.

    Beside a source folder that is not built, an editable installation of another one may offer its
    library, which need not have these operators.
    """
    spec = importlib.util.find_spec("anchornet_ext._C")
    if spec is not None and spec.origin is not None:
        found, expected = Path(spec.origin).resolve().parent, Path(__file__).resolve().parent
        if found != expected:
            raise ImportError(f"there is none in {expected}, and the one in {found} is another's")
        _require_whole(Path(spec.origin), ImportError)
    importlib.import_module("anchornet_ext._C")


def _load() -> None:
    global load_error, cuda_load_error, cuda_loaded
    try:
        _import_native()
    except ImportError as error:
        load_error = error
        return
    if torch.version.cuda is not None and _cuda_library().exists():
        try:
            _require_whole(_cuda_library(), OSError)
            torch.ops.load_library(str(_cuda_library()))  # type: ignore[no-untyped-call]
            cuda_loaded = True
        except OSError as error:
            # torch says only that it could not; the loader's reason is behind it
            cuda_load_error = error.__cause__ if isinstance(error.__cause__, OSError) else error


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


def instruction_set() -> str:
    """Of the CPU kernels that run here: x86-64-v4 (AVX-512), x86-64-v3 (AVX2) or any.

    Raises:
        ImportError: the native library is missing or does not load.
    """
    require()
    return str(importlib.import_module("anchornet_ext._C").instruction_set())


def has_bfloat_products() -> bool:
    """Whether the CPU kernels that run here multiply bfloat16 by the processor's own instruction.

    Raises:
        ImportError: the native library is missing or does not load.
    """
    require()
    return bool(importlib.import_module("anchornet_ext._C").has_bfloat_products())

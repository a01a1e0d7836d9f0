"""Which symbols a library asks for, and which of them a given torch promises to keep."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

#: torch 2.11, the version that csrc is written for (TORCH_TARGET_VERSION in CMakeLists.txt).
TARGET_VERSION = "0x020b000000000000"

_SHIM_HEADERS = """
#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
"""
# C and C++ runtime libraries version their symbols; the rest below are not versioned.
_RUNTIME_VERSION = re.compile(r"@@?(GLIBC|GLIBCXX|CXXABI|GCC)_")
_RUNTIME_NAMES = {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__"}
# The standard library's own templates, weak and without a version: _ZNSt..., _ZTVSt..., _ZNKSs...
_STANDARD_LIBRARY = re.compile(r"_Z(T[VIST])?(N[KRO]*)?S[tabsiod]")
_TORCH_CPLUSPLUS = re.compile(r"2at|3c10|5torch")
_PYTHON = re.compile(r"_?Py[A-Z_]\w*$")
# The runtime's and the driver's C functions: cudaMalloc, __cudaRegisterFunction, cuLaunchKernel.
_CUDA = re.compile(r"(__)?cuda[A-Z]\w*$|cu[A-Z]\w*$")


def undefined_symbols(library: Path) -> list[str]:
    """The names with their versions, as `nm -D -u` prints them: 'memcpy@GLIBC_2.14'."""
    nm = shutil.which("nm")
    assert nm is not None, "nm (binutils) is needed to list the library's symbols"
    output = subprocess.run([nm, "-D", "-u", library], capture_output=True, text=True, check=True)
    return sorted(line.split()[-1] for line in output.stdout.splitlines() if line.strip())


def declared_functions(preprocessed: str) -> set[str]:
    """The functions of torch's C shim in preprocessed headers, the same on every platform."""
    names = re.findall(r"\b((?:aoti_torch|torch)_\w+)\s*\(", preprocessed)
    return {name for name in names if not name.startswith("aoti_torch_mps_")}


def stable_shim(include: Path, target_version: str = TARGET_VERSION) -> set[str]:
    """The functions that the shim in `include` declares for code written for `target_version`."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    assert compiler is not None, "a C++ compiler is needed to read torch's headers"
    flags = ["-std=c++20", f"-DTORCH_TARGET_VERSION={target_version}", "-DUSE_CUDA"]
    output = subprocess.run(
        [compiler, "-E", "-P", *flags, f"-I{include}", "-x", "c++", "-"],
        input=_SHIM_HEADERS,
        capture_output=True,
        text=True,
        check=True,
    )
    return declared_functions(output.stdout)


def foreign_symbols(symbols: Iterable[str], shim: set[str]) -> list[str]:
    """Those that neither the shim nor the C, C++, Python or CUDA runtime provides."""

    def is_known(symbol: str) -> bool:
        if symbol.startswith("_Z") and _TORCH_CPLUSPLUS.search(symbol):
            return False
        return bool(
            symbol in shim
            or symbol in _RUNTIME_NAMES
            or _RUNTIME_VERSION.search(symbol)
            or _STANDARD_LIBRARY.match(symbol)
            or (_PYTHON.match(symbol) and hasattr(ctypes.pythonapi, symbol))
            or _CUDA.match(symbol)
        )

    return [symbol for symbol in symbols if not is_known(symbol)]

"""Drives CMakeLists.txt, which holds the whole build, so that `pip install` works.

    pip install --no-build-isolation .

Environment variables
---------------------
BUILD_NO_CUDA=1       leave the CUDA kernels out.
FORCE_CUDA=1          build them, and fail if that cannot be done.
TORCH_CUDA_ARCH_LIST  architectures as torch writes them ("8.0;9.0+PTX"); means FORCE_CUDA=1.
ANCHORNET_PORTABLE=1  CPU kernels as for an unknown processor: no AVX-512, no AVX2.
CUDA_HOME, NVCC       the CUDA toolkit or its compiler, if nvcc is not on the PATH.
CXX                   the C++ compiler.
MAX_JOBS              parallel compile jobs.
CMAKE_ARGS            further arguments for CMake, such as -DANCHORNET_CUDA_PROFILE=ON.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# Ampere to Hopper as machine code, and the last as PTX for whatever comes after.
DEFAULT_ARCHITECTURES = "8.0;8.6;8.9;9.0+PTX"
INSTALL = "pip install --no-build-isolation ."
# As in pyproject.toml, which pip does not compare without build isolation.
OLDEST_SETUPTOOLS = 77


class Cuda(NamedTuple):
    """How the CUDA kernels will be built."""

    nvcc: str
    version: str
    arch_list: list[str]  # as torch writes them: ["8.0", "9.0+PTX"]


def say(message: str) -> None:
    print(f"anchornet_ext build: {message}", file=sys.stderr, flush=True)


def fail(message: str) -> SystemExit:
    return SystemExit(f"anchornet_ext build: {message}")


def flag(environ: Mapping[str, str], name: str) -> bool:
    return environ.get(name, "0").lower() in {"1", "on", "true", "yes"}


def find_nvcc(environ: Mapping[str, str]) -> str | None:
    """The first that exists; one that is named in NVCC is the only candidate."""
    if environ.get("NVCC"):
        return shutil.which(environ["NVCC"])
    homes = [environ[key] for key in ("CUDA_HOME", "CUDA_PATH") if environ.get(key)]
    candidates = [f"{home}/bin/nvcc" for home in homes]
    candidates += [shutil.which("nvcc", path=environ.get("PATH")), "/usr/local/cuda/bin/nvcc"]
    return next((path for path in candidates if path and Path(path).is_file()), None)


def nvcc_version(nvcc: str) -> str | None:
    try:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    except OSError:
        return None
    match = re.search(r"release (\d+\.\d+)", text)
    return match.group(1) if match else None


def torch_cuda_version() -> str | None:
    """The CUDA version torch was built for, read from its version file: importing torch is slow."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise fail(
            "torch is needed at build time and there is none in this environment; "
            f"install it, then run: {INSTALL}"
        )
    text = (Path(spec.origin).parent / "version.py").read_text()
    match = re.search(r"^cuda[^=]*=\s*'([^']+)'", text, re.MULTILINE)
    return match.group(1) if match else None


def split_architectures(arch_list: str) -> list[str]:
    """'8.0;9.0+PTX' -> ['8.0', '9.0+PTX'], each checked."""
    entries = [entry for entry in re.split(r"[;,\s]+", arch_list) if entry]
    for entry in entries:
        if re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", entry) is None:
            raise fail(f"TORCH_CUDA_ARCH_LIST has {entry!r}; expected entries like 8.0 or 9.0+PTX")
    if not entries:
        raise fail(f"TORCH_CUDA_ARCH_LIST is {arch_list!r}, which names no architecture")
    return entries


def cmake_architectures(arch_list: list[str]) -> str:
    """['8.0', '9.0+PTX'] -> '80-real;90-real;90-virtual', which is CMake's notation."""
    result: list[str] = []
    for entry in arch_list:
        number = entry.removesuffix("+PTX").replace(".", "")
        result.append(f"{number}-real")
        if entry.endswith("+PTX"):
            result.append(f"{number}-virtual")
    return ";".join(result)


def decide_cuda(environ: Mapping[str, str]) -> Cuda | None:
    """How to build the CUDA kernels, or None for a CPU build. Says what it decided, and why."""
    arch_list = environ.get("TORCH_CUDA_ARCH_LIST", "")
    if flag(environ, "BUILD_NO_CUDA"):
        if flag(environ, "FORCE_CUDA"):
            raise fail("BUILD_NO_CUDA and FORCE_CUDA are both set; unset one")
        say("CUDA kernels: off (BUILD_NO_CUDA is set)")
        return None
    forced = flag(environ, "FORCE_CUDA") or bool(arch_list)
    torch_cuda = torch_cuda_version()
    nvcc = find_nvcc(environ)
    version = nvcc_version(nvcc) if nvcc else None
    if torch_cuda is None:
        problem = "the installed torch is a CPU build, which has no libtorch_cuda to link"
    elif nvcc is None and environ.get("NVCC"):
        problem = f"NVCC is {environ['NVCC']}, which is not there"
    elif nvcc is None:
        problem = "there is no nvcc under CUDA_HOME, on the PATH or in /usr/local/cuda"
    elif version is None:
        problem = f"{nvcc} does not run"
    elif version.split(".")[0] != torch_cuda.split(".")[0]:
        problem = f"nvcc is CUDA {version} ({nvcc}) but torch was built for CUDA {torch_cuda}"
    else:
        architectures = split_architectures(arch_list or DEFAULT_ARCHITECTURES)
        say(f"CUDA kernels: on, nvcc {version} ({nvcc}), architectures {' '.join(architectures)}")
        return Cuda(nvcc, version, architectures)
    if forced:
        wish = "FORCE_CUDA" if flag(environ, "FORCE_CUDA") else "TORCH_CUDA_ARCH_LIST"
        raise fail(f"{wish} asks for the CUDA kernels, but {problem}")
    say(f"CUDA kernels: off ({problem})")
    return None


def find_tools(environ: Mapping[str, str]) -> tuple[str, str, str]:
    """(cmake, ninja, C++ compiler)."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{environ.get('PATH', '')}"
    cmake, ninja = shutil.which("cmake", path=path), shutil.which("ninja", path=path)
    missing = [name for name, tool in (("cmake", cmake), ("ninja", ninja)) if tool is None]
    if importlib.util.find_spec("pybind11") is None:
        missing.append("pybind11")
    if missing:
        names = " ".join(missing)
        raise fail(f"{names} not found; run: pip install {names}, then: {INSTALL}")
    assert cmake is not None
    assert ninja is not None
    wanted = [environ["CXX"]] if environ.get("CXX") else ["c++", "g++", "clang++"]
    compilers = [shutil.which(shlex.split(name)[0], path=path) for name in wanted]
    compiler = next((found for found in compilers if found), None)
    if compiler is None:
        raise fail(f"no C++ compiler ({', '.join(wanted)}) found; install one or set CXX")
    return cmake, ninja, compiler


def num_jobs(environ: Mapping[str, str]) -> int:
    text = environ.get("MAX_JOBS", "")
    if not text:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if not text.isdecimal() or int(text) < 1:
        raise fail(f"MAX_JOBS must be a positive number, got {text!r}")
    return int(text)


def run(command: list[str], what: str) -> None:
    status = subprocess.run(command).returncode
    if status:
        raise fail(f"{what} failed with status {status}; the reason is in the lines above")


class CMakeBuild(build_ext):
    """Configures and builds CMakeLists.txt with ninja; installs the libraries in the package."""

    def run(self) -> None:
        cmake, ninja, compiler = find_tools(os.environ)
        cuda = decide_cuda(os.environ)
        portable = flag(os.environ, "ANCHORNET_PORTABLE")
        if portable:
            say("CPU kernels: without AVX-512 and AVX2 (ANCHORNET_PORTABLE is set)")
        jobs = num_jobs(os.environ)
        torch_version = importlib.metadata.version("torch")
        destination = Path(self.get_ext_fullpath("anchornet_ext._C")).resolve().parent
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        say(f"torch {torch_version}, {compiler}, {jobs} jobs, objects in {build}")

        configure = [
            cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DANCHORNET_VERSION={self.distribution.get_version()}",
            f"-DANCHORNET_TORCH_VERSION={torch_version}",
            f"-DANCHORNET_PORTABLE={'ON' if portable else 'OFF'}",
            f"-DANCHORNET_CUDA={'ON' if cuda else 'OFF'}",
            f"-DANCHORNET_CUDA_VERSION={cuda.version if cuda else ''}",
            f"-DANCHORNET_CUDA_ARCH_LIST={' '.join(cuda.arch_list) if cuda else ''}",
        ]  # fmt: skip
        if cuda:
            configure.append(f"-DCMAKE_CUDA_COMPILER={cuda.nvcc}")
            configure.append(f"-DCMAKE_CUDA_ARCHITECTURES={cmake_architectures(cuda.arch_list)}")
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        # CMake keeps the compilers it found first: with other ones it has to start afresh.
        record = build / "anchornet_configure.json"
        tools = json.dumps([sys.executable, compiler, cuda.nvcc if cuda else None])
        if record.exists() and record.read_text() != tools:
            configure.insert(1, "--fresh")
        run(configure, "CMake's configuration")
        record.write_text(tools)

        run([cmake, "--build", str(build), "-j", str(jobs)], "compilation")
        destination.mkdir(parents=True, exist_ok=True)
        if not cuda:  # a CUDA library of an earlier build must not be loaded beside this one
            (destination / "_cuda.so").unlink(missing_ok=True)
        install = [cmake, "--install", str(build), "--component", "anchornet_ext"]
        run([*install, "--prefix", str(destination)], "installation")


def require_setuptools(version: str) -> None:
    """Those that came with Python 3.10 and 3.11 do not know `license` as pyproject.toml has it."""
    if int(version.split(".")[0]) < OLDEST_SETUPTOOLS:
        needed = f"setuptools>={OLDEST_SETUPTOOLS}"
        raise fail(f"setuptools {version} is too old; run: pip install '{needed}', then: {INSTALL}")


if __name__ == "__main__":
    require_setuptools(setuptools.__version__)
    setup(
        ext_modules=[Extension("anchornet_ext._C", sources=[])], cmdclass={"build_ext": CMakeBuild}
    )

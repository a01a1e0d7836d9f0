"""Drives CMakeLists.txt, which holds the whole build, so that `pip install` works.

    pip install --no-build-isolation .

Environment variables
---------------------
BUILD_NO_CUDA=1       leave the CUDA kernels out.
FORCE_CUDA=1          build them, and fail if that cannot be done.
TORCH_CUDA_ARCH_LIST  architectures, as torch writes them ("8.0;9.0+PTX"); implies FORCE_CUDA.
NVCC                  the CUDA compiler, if it is not on the PATH or under CUDA_HOME.
MAX_JOBS              parallel compile jobs.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
# Ampere to Hopper as machine code, and the last as PTX for whatever comes after.
DEFAULT_ARCHITECTURES = "8.0;8.6;8.9;9.0+PTX"


def say(message: str) -> None:
    print(f"anchornet_ext build: {message}", file=sys.stderr, flush=True)


def flag(name: str) -> bool:
    return os.environ.get(name, "0").lower() in {"1", "on", "true", "yes"}


def find_nvcc() -> str | None:
    homes = [os.environ[key] for key in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(key)]
    candidates = [os.environ.get("NVCC"), *[f"{home}/bin/nvcc" for home in homes]]
    candidates += [shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    return next((path for path in candidates if path and Path(path).exists()), None)


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
        raise SystemExit(
            "anchornet_ext needs torch at build time and found none in this environment. "
            "Install torch, then run: pip install --no-build-isolation ."
        )
    text = (Path(spec.origin).parent / "version.py").read_text()
    match = re.search(r"^cuda[^=]*=\s*'([^']+)'", text, re.MULTILINE)
    return match.group(1) if match else None


def cmake_architectures(arch_list: str) -> str:
    """'8.0;9.0+PTX' in torch's notation -> '80-real;90-real;90-virtual' in CMake's."""
    result: list[str] = []
    for entry in re.split(r"[;,\s]+", arch_list.strip()):
        match = re.fullmatch(r"(\d+)\.(\d+[af]?)(\+PTX)?", entry)
        if match is None:
            raise SystemExit(
                f"TORCH_CUDA_ARCH_LIST has {entry!r}; expected entries like '8.0' or '9.0+PTX'"
            )
        number = match.group(1) + match.group(2)
        result.append(f"{number}-real")
        if match.group(3):
            result.append(f"{number}-virtual")
    return ";".join(result)


def decide_cuda() -> tuple[str, str, str] | None:
    """(nvcc, its version, architectures), or None for a CPU build. Says what it decided."""
    if flag("BUILD_NO_CUDA"):
        say("CUDA kernels: off (BUILD_NO_CUDA is set)")
        return None
    arch_list = os.environ.get("TORCH_CUDA_ARCH_LIST")
    forced = flag("FORCE_CUDA") or bool(arch_list)
    torch_cuda = torch_cuda_version()
    nvcc = find_nvcc()
    version = nvcc_version(nvcc) if nvcc else None
    problem = None
    if torch_cuda is None:
        problem = "the installed torch is a CPU build, which has no libtorch_cuda to link"
    elif nvcc is None:
        problem = "no nvcc on the PATH, under CUDA_HOME or in /usr/local/cuda"
    elif version is None:
        problem = f"{nvcc} does not run"
    elif version.split(".")[0] != torch_cuda.split(".")[0]:
        problem = f"nvcc is CUDA {version} but torch was built for CUDA {torch_cuda}"
    if problem:
        if forced:
            raise SystemExit(f"anchornet_ext: CUDA kernels were asked for, but {problem}.")
        say(f"CUDA kernels: off ({problem})")
        return None
    assert nvcc is not None
    assert version is not None
    architectures = cmake_architectures(arch_list or DEFAULT_ARCHITECTURES)
    say(f"CUDA kernels: on, nvcc {version} ({nvcc}), architectures {architectures}")
    return nvcc, version, architectures


class CMakeBuild(build_ext):
    """Builds CMakeLists.txt with ninja and installs the libraries into the package."""

    def run(self) -> None:
        cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        ninja = shutil.which("ninja", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        if cmake is None or ninja is None:
            raise SystemExit(
                "anchornet_ext needs cmake and ninja to build: pip install cmake ninja pybind11"
            )
        cuda = decide_cuda()
        torch_version = importlib.metadata.version("torch")
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        destination = Path(self.get_ext_fullpath("anchornet_ext._C")).resolve().parent
        build = ROOT / "build" / f"cmake-py{sys.version_info[0]}{sys.version_info[1]}"
        say(f"torch {torch_version}, C++ build in {build}, {jobs} jobs")
        configure = [
            cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DANCHORNET_VERSION={self.distribution.get_version()}",
            f"-DANCHORNET_TORCH_VERSION={torch_version}",
            f"-DANCHORNET_CUDA={'ON' if cuda else 'OFF'}",
            f"-DANCHORNET_CUDA_VERSION={cuda[1] if cuda else ''}",
            f"-DANCHORNET_CUDA_ARCHITECTURES={cuda[2] if cuda else ''}",
        ]  # fmt: skip
        if cuda:
            configure += [
                f"-DCMAKE_CUDA_COMPILER={cuda[0]}",
                f"-DCMAKE_CUDA_ARCHITECTURES={cuda[2]}",
            ]
        subprocess.run(configure, check=True)
        subprocess.run([cmake, "--build", str(build), "-j", jobs], check=True)
        destination.mkdir(parents=True, exist_ok=True)
        if not cuda:  # a CUDA library of an earlier build must not be loaded beside this one
            (destination / "_cuda.so").unlink(missing_ok=True)
        install = [cmake, "--install", str(build), "--component", "anchornet_ext"]
        subprocess.run([*install, "--prefix", str(destination)], check=True)


setup(ext_modules=[Extension("anchornet_ext._C", sources=[])], cmdclass={"build_ext": CMakeBuild})

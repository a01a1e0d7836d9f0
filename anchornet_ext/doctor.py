"""`anchornet doctor`: what is installed, what was built, and whether it works.

Every fact is collected even where others are missing, because this is what one runs when something
is broken. The exit status is 1 when something is, and each problem comes with what to do.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import re
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from . import _extension
from ._version import __version__
from .self_check import CHECKS

_INSTALL = "pip install --no-build-isolation ."
_OLDEST_TORCH = (2, 11)
_OPTIONAL = {"timm": "backbones from timm", "tensorboard": "training curves"}


@dataclass
class Problem:
    """Something that is broken, and what to do about it."""

    what: str
    remedy: str


@dataclass
class Kernels:
    """Whether one of the two native libraries is in use, and if not, why."""

    loaded: bool
    reason: str | None = None


@dataclass
class Gpu:
    """A visible GPU; `runs` says what of the build it can run: machine code, PTX or nothing."""

    index: int
    name: str
    capability: str
    runs: str | None


@dataclass
class SelfCheck:
    """One operator on one device against its reference."""

    operator: str
    device: str
    error: str | None = None


@dataclass
class Report:
    """All that `anchornet doctor` knows."""

    versions: dict[str, str | None]
    cpu_kernels: Kernels
    cuda_kernels: Kernels
    build: dict[str, Any] | None
    gpus: list[Gpu]
    processor: dict[str, str | int | None]
    self_check: list[SelfCheck]
    problems: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `anchornet doctor`."""
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(args: argparse.Namespace) -> int:
    """Prints the report; the exit status is 1 when something is broken."""
    report = examine()
    print(json.dumps(asdict(report), indent=2) if args.json else describe(report))
    return 1 if report.problems else 0


def architecture_fits(capability: tuple[int, int], architectures: str) -> str | None:
    """How a GPU can run kernels that were built for `architectures`.

    Machine code runs on GPUs of the same major and the same or a later minor version; with the
    suffix "a" on that version only, with "f" on its family, which is the same rule. PTX is compiled
    by the driver for any later GPU; with "a" only for that version, with "f" for its family.

    Args:
        capability: (major, minor) of the GPU, as `torch.cuda.get_device_capability` returns it.
        architectures: as in TORCH_CUDA_ARCH_LIST: "8.0 9.0a 9.0+PTX".

    Returns:
        "machine code", "PTX", or None if there is nothing that the GPU can run.

    Raises:
        ValueError: an entry of `architectures` is not of that form.
    """
    best: str | None = None
    for entry in re.split(r"[;,\s]+", architectures.strip()):
        if not entry:
            continue
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", entry)
        if match is None:
            raise ValueError(f"architectures has {entry!r}; expected entries like 8.0 or 9.0+PTX")
        built, suffix = (int(match[1]), int(match[2])), match[3]
        same_family = capability[0] == built[0] and capability[1] >= built[1]
        runs_code = capability == built if suffix == "a" else same_family
        compiles = {"a": capability == built, "f": same_family}.get(suffix, capability >= built)
        if runs_code:
            return "machine code"
        if match[4] and compiles:
            best = "PTX"
    return best


def examine() -> Report:
    """Collects all facts and runs every operator once on every kind of device."""
    build = _extension.build_info() if _extension.available() else None
    devices = []
    if _extension.available():
        devices.append("cpu")
        if _extension.cuda_loaded and torch.cuda.is_available():
            devices.append("cuda")
    report = Report(
        versions=_versions(),
        cpu_kernels=Kernels(_extension.available(), _reason(_extension.load_error)),
        cuda_kernels=Kernels(_extension.cuda_loaded, _cuda_reason()),
        build=build,
        gpus=_gpus(build),
        processor=_processor(),
        self_check=[_self_check(name, device) for device in devices for name in CHECKS],
    )
    _judge(report)
    return report


def _reason(error: BaseException | None) -> str | None:
    return None if error is None else f"{type(error).__name__}: {error}"


def _cuda_reason() -> str | None:
    if _extension.cuda_loaded:
        return None
    if not _extension.available():
        return "the CPU kernels, which come first, do not load"
    if _extension.cuda_load_error is not None:
        return _reason(_extension.cuda_load_error)
    if torch.version.cuda is None:
        return "this torch has no CUDA"
    return "built without CUDA"


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {
        "anchornet_ext": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda of torch": torch.version.cuda,
    }
    for name in ("torchvision", *_OPTIONAL):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _gpus(build: dict[str, Any] | None) -> list[Gpu]:
    if not torch.cuda.is_available():
        return []
    architectures = build["cuda_architectures"] if build else ""
    gpus = []
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        gpus.append(
            Gpu(
                index=index,
                name=torch.cuda.get_device_name(index),
                capability=f"{capability[0]}.{capability[1]}",
                runs=architecture_fits(capability, architectures),
            )
        )
    return gpus


def _processor() -> dict[str, str | int | None]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "cores": os.cpu_count(),
        "cores this process may use": usable,
        "threads of torch": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "instruction set of torch": torch.backends.cpu.get_cpu_capability(),
        "instruction set of the kernels": (
            _extension.instruction_set() if _extension.available() else None
        ),
    }


def _self_check(name: str, device: str) -> SelfCheck:
    try:
        CHECKS[name](torch.device(device))
    except Exception as error:  # whatever it is, it is what the report is for
        lines = str(error).strip().splitlines() or [""]
        return SelfCheck(name, device, f"{type(error).__name__}: {lines[0]}")
    return SelfCheck(name, device)


def _judge(report: Report) -> None:
    """Fills in `problems`, which make the exit status 1, and `notes`, which do not."""
    if not report.cpu_kernels.loaded:
        report.problems.append(
            Problem(
                f"the native library does not load ({report.cpu_kernels.reason})",
                f"run `{_INSTALL}` in the source folder",
            )
        )
    numbers = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if numbers is not None and (int(numbers[1]), int(numbers[2])) < _OLDEST_TORCH:
        report.problems.append(
            Problem(f"torch {torch.__version__} is too old", "install torch 2.11 or later")
        )
    _judge_build(report)
    _judge_torchvision(report)
    for check in report.self_check:
        if check.error is not None:
            report.problems.append(
                Problem(
                    f"{check.operator} on {check.device} fails its self-check: {check.error}",
                    f"run `{_INSTALL}` again; if that does not help, report it with the output of "
                    "`anchornet doctor --json`",
                )
            )
    for name, purpose in _OPTIONAL.items():
        if report.versions[name] is None:
            report.notes.append(
                Problem(f"{name} is not installed: no {purpose}", f"pip install {name}")
            )


def _judge_build(report: Report) -> None:
    if report.build is None:
        return
    if report.build["version"] != __version__:
        report.problems.append(
            Problem(
                f"the native library is of version {report.build['version']}, the Python code of "
                f"{__version__}",
                f"run `{_INSTALL}` in the source folder",
            )
        )
    built_cuda, torch_cuda = report.build["cuda_version"], torch.version.cuda
    if built_cuda and torch_cuda and built_cuda.split(".")[0] != torch_cuda.split(".")[0]:
        report.problems.append(
            Problem(
                f"the CUDA kernels were built with CUDA {built_cuda}, torch with {torch_cuda}",
                f"install nvcc {torch_cuda.split('.')[0]}, then run `FORCE_CUDA=1 {_INSTALL}`",
            )
        )
    rebuild = f"run `FORCE_CUDA=1 {_INSTALL}` in the source folder"
    if _extension.cuda_load_error is not None:
        report.problems.append(
            Problem(f"the CUDA kernels do not load ({report.cuda_kernels.reason})", rebuild)
        )
    elif report.gpus and not report.cuda_kernels.loaded:
        what = f"there is a GPU, but no CUDA kernels are in use ({report.cuda_kernels.reason})"
        report.notes.append(Problem(what, rebuild))
    for gpu in report.gpus if report.cuda_kernels.loaded else []:
        if gpu.runs is None:
            report.problems.append(
                Problem(
                    f"GPU {gpu.index} ({gpu.name}) has compute capability {gpu.capability}, but "
                    f"the kernels are for {report.build['cuda_architectures']}",
                    f'run `TORCH_CUDA_ARCH_LIST="{gpu.capability}" {_INSTALL}`',
                )
            )


def _judge_torchvision(report: Report) -> None:
    """It is there in name more often than it works: each release fits one torch only."""
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # also RuntimeError, when it was built for another torch
        installed = report.versions["torchvision"]
        what = f"torchvision {installed} does not import" if installed else "no torchvision"
        report.problems.append(
            Problem(
                f"{what} ({_reason(error)}): the operators work, the models do not",
                f"install the torchvision of torch {torch.__version__.split('+')[0]}",
            )
        )


def describe(report: Report) -> str:
    """The report as text."""

    def table(title: str, rows: dict[str, Any]) -> list[str]:
        width = max(28, 2 + max(map(len, rows)))
        return [title, *(f"  {name:<{width}}{_plain(value)}" for name, value in rows.items()), ""]

    lines = table("Versions", report.versions)
    if report.build is not None:
        facts = {name.replace("_", " "): value for name, value in report.build.items()}
        lines += table("Build", {**facts, "cuda version": facts["cuda version"] or "no CUDA"})
    lines += table(
        "Kernels",
        {
            "CPU": _state(report.cpu_kernels),
            "CUDA": _state(report.cuda_kernels),
            **{f"GPU {gpu.index}": _gpu_line(gpu) for gpu in report.gpus},
        },
    )
    lines += table("Processor", report.processor)
    checks = {
        f"{check.operator} ({check.device})": check.error or "equals its reference"
        for check in report.self_check
    }
    lines += table("Self-check", checks or {"operators": "not run: the kernels do not load"})
    for note in report.notes:
        lines += [f"Note: {note.what}", f"  {note.remedy}"]
    for problem in report.problems:
        lines += [f"Problem: {problem.what}", f"  What to do: {problem.remedy}"]
    if not report.problems:
        lines.append("All is well.")
    return "\n".join(lines)


def _plain(value: object) -> str:
    return "-" if value is None or value == "" else str(value)


def _state(kernels: Kernels) -> str:
    return "loaded" if kernels.loaded else f"not in use: {kernels.reason}"


def _gpu_line(gpu: Gpu) -> str:
    runs = f"runs the {gpu.runs}" if gpu.runs else "cannot run what was built"
    return f"{gpu.name}, compute capability {gpu.capability}: {runs}"

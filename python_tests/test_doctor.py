"""`anchornet doctor`, run as a user runs it, and the judgements it makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import in_this_process

import anchornet_ext
from anchornet_ext import _extension, doctor, ops, self_check

ROOT = Path(anchornet_ext.__file__).resolve().parents[1]


def run_doctor(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "anchornet_ext.cli", "doctor", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_working_installation() -> None:
    result = run_doctor("--json", OMP_NUM_THREADS="1")
    report = json.loads(result.stdout)
    assert report["problems"] == []
    assert result.returncode == 0, result.stderr
    assert report["versions"]["torch"] == torch.__version__
    assert report["versions"]["anchornet_ext"] == anchornet_ext.__version__
    assert report["cpu_kernels"] == {"loaded": True, "reason": None}
    assert report["build"] == _extension.build_info()
    assert report["processor"]["threads of torch"] == 1
    assert report["processor"]["OMP_NUM_THREADS"] == "1"
    chosen = report["processor"]["instruction set of the kernels"]
    assert chosen == _extension.instruction_set() in ("any", "x86-64-v3", "x86-64-v4")
    devices = {"cpu", "cuda"} if torch.cuda.is_available() and _extension.cuda_loaded else {"cpu"}
    checked = {(check["operator"], check["device"]) for check in report["self_check"]}
    assert checked == {(name, device) for name in self_check.CHECKS for device in devices}


def test_the_text_names_versions_kernels_and_checks(capsys: pytest.CaptureFixture[str]) -> None:
    with in_this_process(capsys, "doctor") as run:
        result = run()
    assert result.returncode == 0, result.stdout
    lines = result.stdout.splitlines()
    assert any(line.split() == ["torch", torch.__version__] for line in lines)
    assert any(line.split() == ["CPU", "loaded"] for line in lines)
    assert lines[-1] == "All is well."
    for name in self_check.CHECKS:
        assert f"{name} (cpu)" in result.stdout
    table = [line.strip() for line in lines if line.startswith("  ")]
    assert [line for line in table if "  " not in line] == []  # every name apart from its value


def test_every_operator_is_checked() -> None:
    # For `convolve_cells` and others, whose checks call them.
    prepares_weights = {"pack_cells", "pack_layers", "pack_map_program", "pack_maps"}
    operators = {name for name in ops.__all__ if name.islower()} - prepares_weights
    assert set(self_check.CHECKS) == operators


@pytest.mark.parametrize("name", list(self_check.CHECKS))
def test_a_wrong_kernel_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check compares: with another result in place of the operator's it fails."""
    right = getattr(ops, name)

    def wrong(*arguments: Any, **keywords: Any) -> Any:
        result = right(*arguments, **keywords)
        if isinstance(result, torch.Tensor):
            return result + 0.1
        if isinstance(result, list):
            return [part + 1 for part in result]
        return type(result)(*(part + 1 for part in result))

    self_check.CHECKS[name](torch.device("cpu"))
    monkeypatch.setattr(ops, name, wrong)
    report = doctor.examine()
    (problem,) = report.problems
    assert problem.what.startswith(f"{name} on cpu fails its self-check: AssertionError")


@pytest.mark.parametrize(
    ("capability", "architectures", "expected"),
    [
        ((8, 0), "8.0", "machine code"),
        ((8, 6), "8.0", "machine code"),
        ((8, 0), "8.6", None),
        ((9, 0), "8.0 8.6 8.9", None),
        ((9, 0), "8.0+PTX", "PTX"),
        ((9, 0), "8.0+PTX 9.0", "machine code"),
        ((9, 0), "9.0 8.0+PTX", "machine code"),
        ((7, 5), "8.0+PTX", None),
        ((12, 0), "8.0;8.6;8.9;9.0+PTX", "PTX"),
        ((12, 0), "8.0;8.6;8.9;9.0", None),
        ((10, 3), "9.0 10.0", "machine code"),
        ((9, 0), "9.0a", "machine code"),
        ((10, 0), "9.0a+PTX", None),
        ((10, 3), "10.0a+PTX", None),
        ((10, 3), "10.0f", "machine code"),
        ((11, 0), "10.0f+PTX", None),
        ((8, 0), "", None),
    ],
)
def test_architecture_fits(
    capability: tuple[int, int], architectures: str, expected: str | None
) -> None:
    assert doctor.architecture_fits(capability, architectures) == expected


def test_architecture_fits_names_a_wrong_entry() -> None:
    with pytest.raises(ValueError, match="'sm_90'"):
        doctor.architecture_fits((9, 0), "8.0 sm_90")


def with_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], built_for: str) -> None:
    """A GPU that is only there for doctor's eyes."""
    build = {**_extension.build_info(), "cuda_version": "13.0", "cuda_architectures": built_for}
    monkeypatch.setattr(_extension, "build_info", lambda: build)
    monkeypatch.setattr(_extension, "cuda_loaded", bool(built_for))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Some GPU")
    monkeypatch.setattr(doctor, "_self_check", lambda name, device: doctor.SelfCheck(name, device))


def test_a_gpu_that_cannot_run_what_was_built(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, (12, 0), "8.0 9.0")
    report = doctor.examine()
    (problem,) = report.problems
    assert "GPU 0 (Some GPU) has compute capability 12.0" in problem.what
    assert "kernels are for 8.0 9.0" in problem.what
    assert 'TORCH_CUDA_ARCH_LIST="12.0" pip install' in problem.remedy
    assert "cannot run what was built" in doctor.describe(report)


def test_a_gpu_that_compiles_the_ptx(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, (12, 0), "8.0 9.0+PTX")
    report = doctor.examine()
    assert report.problems == []
    assert {check.device for check in report.self_check} == {"cpu", "cuda"}
    assert "Some GPU, compute capability 12.0: runs the PTX" in doctor.describe(report)


def test_a_gpu_without_kernels_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, (9, 0), "")
    report = doctor.examine()
    assert report.problems == []
    assert any("no CUDA kernels are in use" in note.what for note in report.notes)


def test_another_cuda_major_version_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, (9, 0), "9.0")
    monkeypatch.setattr(torch.version, "cuda", "14.1")
    (problem,) = doctor.examine().problems
    assert problem.what == "the CUDA kernels were built with CUDA 13.0, torch with 14.1"


def test_cuda_kernels_that_do_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, (9, 0), "9.0")
    monkeypatch.setattr(_extension, "cuda_loaded", False)
    monkeypatch.setattr(_extension, "cuda_load_error", OSError("file too short"))
    (problem,) = doctor.examine().problems
    assert problem.what == "the CUDA kernels do not load (OSError: file too short)"
    assert "FORCE_CUDA=1 pip install" in problem.remedy


def test_a_library_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    build = {**_extension.build_info(), "version": "0.0.9"}
    monkeypatch.setattr(_extension, "build_info", lambda: build)
    (problem,) = doctor.examine().problems
    assert "is of version 0.0.9" in problem.what


def test_torchvision_of_another_torch(tmp_path: Path) -> None:
    """It is installed but fails with a RuntimeError on import."""
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    result = run_doctor(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}")
    assert result.returncode == 1
    assert "operator torchvision::nms does not exist" in result.stdout
    assert "install the torchvision of torch" in result.stdout


def test_an_old_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    assert [p.what for p in doctor.examine().problems] == ["torch 2.9.1+cpu is too old"]


def test_optional_packages_that_are_missing_are_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "timm":
            raise doctor.importlib.metadata.PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr(doctor.importlib.metadata, "version", version)
    report = doctor.examine()
    assert report.problems == []
    assert [note.remedy for note in report.notes] == ["pip install timm"]

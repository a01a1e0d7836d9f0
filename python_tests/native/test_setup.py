"""The decisions of setup.py: with or without CUDA, for which architectures, with which tools."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from anchornet_ext._version import __version__

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def build() -> ModuleType:
    """setup.py as a module; it builds only when it is run."""
    spec = importlib.util.spec_from_file_location("anchornet_setup", ROOT / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder for programs that only print."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


def add_program(folder: Path, name: str, prints: str = "") -> Path:
    program = folder / name
    program.write_text(f"#!/bin/sh\necho '{prints}'\n")
    program.chmod(0o755)
    return program


def add_nvcc(folder: Path, version: str) -> Path:
    return add_program(folder, "nvcc", f"Cuda compilation tools, release {version}, V{version}.1")


@pytest.fixture
def with_torch(build: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The build with a torch for CUDA 13.0, and without the machine's own /usr/local/cuda."""
    monkeypatch.setattr(build, "torch_cuda_version", lambda: "13.0")
    real_is_file = Path.is_file
    monkeypatch.setattr(
        Path,
        "is_file",
        lambda path: not str(path).startswith("/usr/local/cuda") and real_is_file(path),
    )
    return build


def test_cuda_is_built_where_nvcc_matches_torch(
    with_torch: ModuleType, tools: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    nvcc = add_nvcc(tools, "13.2")
    cuda = with_torch.decide_cuda({"PATH": str(tools)})
    assert cuda == (str(nvcc), "13.2", ["8.0", "8.6", "8.9", "9.0+PTX"])
    message = capfd.readouterr().err
    assert f"on, nvcc 13.2 ({nvcc}), architectures 8.0 8.6 8.9 9.0+PTX" in message


def test_build_no_cuda_wins_over_an_architecture_list(
    with_torch: ModuleType, tools: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    add_nvcc(tools, "13.0")
    environ = {"PATH": str(tools), "BUILD_NO_CUDA": "1", "TORCH_CUDA_ARCH_LIST": "9.0"}
    assert with_torch.decide_cuda(environ) is None
    assert "off (BUILD_NO_CUDA is set)" in capfd.readouterr().err
    assert with_torch.decide_cuda({"PATH": str(tools), "BUILD_NO_CUDA": "0"}) is not None


def test_contradicting_switches_are_refused(with_torch: ModuleType) -> None:
    with pytest.raises(SystemExit, match="BUILD_NO_CUDA and FORCE_CUDA are both set"):
        with_torch.decide_cuda({"BUILD_NO_CUDA": "1", "FORCE_CUDA": "1"})


@pytest.mark.parametrize("home", ["CUDA_HOME", "CUDA_PATH"])
def test_the_toolkit_that_is_named_comes_before_the_path(
    with_torch: ModuleType, tools: Path, tmp_path: Path, home: str
) -> None:
    add_nvcc(tools, "13.0")
    (tmp_path / "toolkit" / "bin").mkdir(parents=True)
    named = add_nvcc(tmp_path / "toolkit" / "bin", "13.1")
    environ = {"PATH": str(tools), home: str(tmp_path / "toolkit"), "TORCH_CUDA_ARCH_LIST": "9.0"}
    assert with_torch.decide_cuda(environ) == (str(named), "13.1", ["9.0"])
    environ["NVCC"] = str(tools / "nvcc")
    assert with_torch.decide_cuda(environ) == (str(tools / "nvcc"), "13.0", ["9.0"])


def no_nvcc(tools: Path) -> dict[str, str]:
    return {}


def named_nvcc_is_missing(tools: Path) -> dict[str, str]:
    add_nvcc(tools, "13.0")
    return {"NVCC": "/nowhere/nvcc"}


def older_nvcc(tools: Path) -> dict[str, str]:
    add_nvcc(tools, "12.8")
    return {}


def broken_nvcc(tools: Path) -> dict[str, str]:
    add_program(tools, "nvcc", "no version here")
    return {}


PROBLEMS = [
    (no_nvcc, "there is no nvcc under CUDA_HOME, on the PATH or in /usr/local/cuda"),
    (named_nvcc_is_missing, "NVCC is /nowhere/nvcc, which is not there"),
    (older_nvcc, r"nvcc is CUDA 12.8 \(.*nvcc\) but torch was built for CUDA 13.0"),
    (broken_nvcc, "nvcc does not run"),
]


@pytest.mark.parametrize(("problem", "message"), PROBLEMS)
def test_without_a_fitting_nvcc_the_cpu_build_goes_on_and_says_why(
    with_torch: ModuleType,
    tools: Path,
    capfd: pytest.CaptureFixture[str],
    problem: object,
    message: str,
) -> None:
    assert callable(problem)
    environ = {"PATH": str(tools), **problem(tools)}
    assert with_torch.decide_cuda(environ) is None
    output = capfd.readouterr().err
    assert output.startswith("anchornet_ext build: CUDA kernels: off (")
    assert re.search(message, output)


@pytest.mark.parametrize(("problem", "message"), PROBLEMS)
@pytest.mark.parametrize("wish", [{"FORCE_CUDA": "1"}, {"TORCH_CUDA_ARCH_LIST": "9.0"}])
def test_a_wish_for_cuda_that_cannot_be_met_stops_the_build(
    with_torch: ModuleType, tools: Path, problem: object, message: str, wish: dict[str, str]
) -> None:
    assert callable(problem)
    with pytest.raises(SystemExit, match=f"{next(iter(wish))} asks for the CUDA.*{message}"):
        with_torch.decide_cuda({"PATH": str(tools), **problem(tools), **wish})


def test_a_cpu_build_of_torch_has_no_cuda_to_link(
    with_torch: ModuleType, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_nvcc(tools, "13.0")
    monkeypatch.setattr(with_torch, "torch_cuda_version", lambda: None)
    assert with_torch.decide_cuda({"PATH": str(tools)}) is None
    with pytest.raises(SystemExit, match="the installed torch is a CPU build"):
        with_torch.decide_cuda({"PATH": str(tools), "FORCE_CUDA": "1"})


def fake_torch(folder: Path, cuda_line: str) -> Path:
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "torch" / "version.py").write_text(f"__version__ = '2.14.1'\n{cuda_line}\n")
    return folder


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cuda: Optional[str] = '13.0'", "13.0"),
        ("cuda = '12.8'", "12.8"),
        ("cuda: Optional[str] = None", None),
        ("hip: Optional[str] = '6.4'", None),
    ],
)
def test_torch_is_asked_for_its_cuda_without_importing_it(
    build: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    expected: str | None,
) -> None:
    folder = fake_torch(tmp_path, line)
    location = folder / "torch" / "__init__.py"
    spec = importlib.util.spec_from_file_location("torch", location)
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: spec)
    assert build.torch_cuda_version() == expected


def test_missing_torch_is_said_with_the_command(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"torch is needed.*--no-build-isolation \."):
        build.torch_cuda_version()


@pytest.mark.parametrize(
    ("text", "entries", "cmake"),
    [
        ("8.0", ["8.0"], "80-real"),
        ("8.0;9.0+PTX", ["8.0", "9.0+PTX"], "80-real;90-real;90-virtual"),
        ("8.6 9.0a", ["8.6", "9.0a"], "86-real;90a-real"),
        ("7.5,10.0f+PTX;", ["7.5", "10.0f+PTX"], "75-real;100f-real;100f-virtual"),
        ("12.0", ["12.0"], "120-real"),
    ],
)
def test_architectures(build: ModuleType, text: str, entries: list[str], cmake: str) -> None:
    assert build.split_architectures(text) == entries
    assert build.cmake_architectures(entries) == cmake


@pytest.mark.parametrize("text", ["90", "Hopper", "9.0+ptx", "8.0;sm_90", "9.0-PTX", "9.0b"])
def test_a_wrong_architecture_is_named(build: ModuleType, text: str) -> None:
    with pytest.raises(SystemExit, match=f"TORCH_CUDA_ARCH_LIST has '{text.split(';')[-1][:2]}"):
        build.split_architectures(text)
    with pytest.raises(SystemExit, match="names no architecture"):
        build.split_architectures(" ; ")


def test_jobs(build: ModuleType) -> None:
    assert build.num_jobs({"MAX_JOBS": "3"}) == 3
    assert build.num_jobs({}) >= 1
    for text in ("0", "-1", "two"):
        with pytest.raises(SystemExit, match=f"MAX_JOBS must be a positive number, got '{text}'"):
            build.num_jobs({"MAX_JOBS": text})


def test_missing_tools_are_named_with_the_command(
    build: ModuleType, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build.sys, "executable", str(tools / "python"))
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    environ = {"PATH": str(tools)}
    with pytest.raises(SystemExit, match="cmake ninja pybind11 not found; run: pip install cmake"):
        build.find_tools(environ)
    add_program(tools, "cmake")
    add_program(tools, "ninja")
    with pytest.raises(SystemExit, match="pip install pybind11, then: pip install --no-build-iso"):
        build.find_tools(environ)
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(SystemExit, match=r"no C\+\+ compiler \(c\+\+, g\+\+, clang\+\+\) found"):
        build.find_tools(environ)
    with pytest.raises(SystemExit, match=r"no C\+\+ compiler \(no-such-compiler\) found"):
        build.find_tools({**environ, "CXX": "no-such-compiler"})
    add_program(tools, "g++")
    expected = tuple(str(tools / name) for name in ("cmake", "ninja", "g++"))
    assert build.find_tools(environ) == expected


def test_a_failing_step_is_one_sentence_without_a_traceback(build: ModuleType) -> None:
    command = [sys.executable, "-c", "raise SystemExit(7)"]
    with pytest.raises(SystemExit, match="compilation failed with status 7"):
        build.run(command, "compilation")
    build.run([sys.executable, "-c", "pass"], "compilation")


def test_setuptools_that_cannot_read_the_project_is_named(build: ModuleType) -> None:
    """pip compares no versions without build isolation, and its error is of 90 lines."""
    with pytest.raises(
        SystemExit, match=r"setuptools 65\.5\.0 is too old; run: pip install 'setup"
    ):
        build.require_setuptools("65.5.0")
    build.require_setuptools("77.0.3.post1")
    needed = f'"setuptools>={build.OLDEST_SETUPTOOLS}"'
    for place in ("pyproject.toml", "Makefile", "README.md", "docs/install.md"):
        assert needed in (ROOT / place).read_text(), place


def test_setup_runs_as_pip_runs_it() -> None:
    """`python setup.py --version` goes through setup() and reads the version without torch."""
    output = subprocess.run(
        [sys.executable, "setup.py", "-q", "--version"],
        cwd=ROOT,
        env={**os.environ},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert output.split()[-1] == __version__

"""Importing the package: what it costs, and what a missing or broken library does to it."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import anchornet_ext

PACKAGE = Path(anchornet_ext.__file__).parent
CALL_AN_OP = """
import torch, anchornet_ext
try:
    anchornet_ext.ops.exit_step(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]), 0.5)
except ImportError as error:
    print("ImportError:", error)
    print("cause:", type(error.__cause__).__name__, error.__cause__)
else:
    print("the op ran")
"""


# An editable installation in this environment must not stand in for what a test takes away.
WITHOUT_EDITABLE = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
"""


def run_python(code: str, path: Path = PACKAGE.parent) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_EDITABLE + code],
        cwd=path,
        env={**os.environ, "PYTHONPATH": str(path)},
        capture_output=True,
        text=True,
        timeout=250,
    )


def test_import_costs_at_most_150_ms_beyond_torch_and_brings_in_nothing_heavy() -> None:
    """Processor time, so that whatever else the machine does is not counted."""
    code = """
import sys, time
import torch
before = set(sys.modules)
start = time.process_time()
import anchornet_ext
print(time.process_time() - start)
heavy = {"torchvision", "timm", "tensorboard", "PIL", "rich", "matplotlib", "safetensors"}
print(sorted(heavy & (set(sys.modules) - before)))
"""
    run_python(code)  # writes the byte code
    results = [run_python(code).stdout.split() for _ in range(3)]
    assert [heavy for _, heavy in results] == ["[]"] * 3
    seconds = [float(taken) for taken, _ in results]
    assert statistics.median(seconds) < 0.150, seconds


def test_public_names_are_found_listed_and_imported_on_first_use() -> None:
    code = """
import anchornet_ext
assert set(anchornet_ext.__all__) <= set(dir(anchornet_ext))
for name in anchornet_ext.__all__:
    getattr(anchornet_ext, name)
for name in anchornet_ext._LAZY:
    assert name in vars(anchornet_ext), name
try:
    anchornet_ext.no_such_name
except AttributeError as error:
    print(error)
"""
    result = run_python(code)
    assert result.stdout.strip() == "module 'anchornet_ext' has no attribute 'no_such_name'", result


def native_library(folder: Path) -> Path:
    (library,) = (folder / "anchornet_ext").glob(f"_C.{sys.implementation.cache_tag}-*.so")
    return library


def remove(folder: Path) -> None:
    native_library(folder).unlink()


def truncate(folder: Path) -> None:
    library = native_library(folder)
    library.write_bytes(library.read_bytes()[: library.stat().st_size // 2])


def truncate_by_a_byte(folder: Path) -> None:
    library = native_library(folder)
    library.write_bytes(library.read_bytes()[:-1])


def replace_by_text(folder: Path) -> None:
    native_library(folder).write_text("not a library\n" * 100)


def ask_for_a_missing_symbol(folder: Path) -> None:
    """What an update of torch does to a library that uses more than the stable shim."""
    library = native_library(folder)
    content = library.read_bytes()
    assert content.count(b"\0torch_call_dispatcher\0") >= 1
    library.write_bytes(content.replace(b"\0torch_call_dispatcher\0", b"\0torch_call_dispatchez\0"))


@pytest.fixture
def package_copy(tmp_path: Path) -> Path:
    """A folder with a copy of the package and its libraries."""
    ignore = shutil.ignore_patterns("__pycache__", "pretrained")
    shutil.copytree(PACKAGE, tmp_path / "anchornet_ext", ignore=ignore)
    return tmp_path


BREAKAGES = [
    pytest.param(remove, "ModuleNotFoundError", "anchornet_ext._C", id="missing"),
    pytest.param(truncate, "ImportError", "is cut off: ", id="truncated"),
    pytest.param(truncate_by_a_byte, "ImportError", "is cut off: ", id="a byte short"),
    pytest.param(replace_by_text, "ImportError", "invalid ELF header", id="no library"),
    pytest.param(
        ask_for_a_missing_symbol, "ImportError", "torch_call_dispatchez", id="missing symbol"
    ),
]


@pytest.mark.parametrize(("breakage", "cause", "reason"), BREAKAGES)
def test_broken_library_is_said_by_the_operators_and_by_doctor(
    package_copy: Path, breakage: Callable[[Path], None], cause: str, reason: str
) -> None:
    breakage(package_copy)
    doctor = "from anchornet_ext import cli; sys.exit(cli.main(['doctor', '--json']))"
    result = run_python(CALL_AN_OP + doctor, package_copy)
    assert result.returncode == 1, result.stderr
    message, chained, report_text = result.stdout.split("\n", maxsplit=2)
    assert message.startswith("ImportError: anchornet_ext's native library is missing or does not")
    assert "run `pip install --no-build-isolation .`" in message
    assert chained.startswith(f"cause: {cause} ")
    assert reason in chained
    assert reason in message
    report = json.loads(report_text)
    assert report["cpu_kernels"]["loaded"] is False
    assert reason in report["cpu_kernels"]["reason"]
    assert report["self_check"] == []
    assert any("pip install --no-build-isolation ." in p["remedy"] for p in report["problems"])


def test_the_library_of_another_installation_is_not_taken(package_copy: Path) -> None:
    """As an editable installation elsewhere would offer it beside an unbuilt source folder."""
    remove(package_copy)
    elsewhere = str(native_library(PACKAGE.parent))
    finder = f"""
import importlib.machinery, importlib.util, sys
class Elsewhere:
    def find_spec(name, path=None, target=None):
        if name == "anchornet_ext._C":
            return importlib.util.spec_from_file_location(name, {elsewhere!r})
sys.meta_path.append(Elsewhere)
"""
    result = run_python(finder + CALL_AN_OP, package_copy)
    assert result.returncode == 0, result.stderr
    assert f"there is none in {package_copy / 'anchornet_ext'}" in result.stdout
    assert f"the one in {PACKAGE} is another's" in result.stdout


def test_an_intact_copy_works(package_copy: Path) -> None:
    """So that the tests above fail for what they break and for nothing else."""
    assert run_python(CALL_AN_OP, package_copy).stdout == "the op ran\n"


def test_broken_cuda_library_leaves_the_cpu_working(package_copy: Path) -> None:
    """torch.version.cuda is set for this process so that the branch runs under any torch."""
    (package_copy / "anchornet_ext" / "_cuda.so").write_text("not a library\n" * 100)
    code = (
        "import torch; torch.version.cuda = torch.version.cuda or '13.0'"
        + CALL_AN_OP
        + """
from anchornet_ext import _extension
assert _extension.available() and not _extension.cuda_loaded
try:
    _extension.require_device(torch.device("cuda"))
except ImportError as error:
    print(error)
    print("cause:", type(error.__cause__).__name__)
"""
    )
    result = run_python(code, package_copy)
    assert result.returncode == 0, result.stderr
    ran, message, cause = result.stdout.splitlines()
    assert ran == "the op ran"
    assert "CUDA kernels" in message
    assert "invalid ELF header" in message
    assert "FORCE_CUDA=1" in message
    assert cause == "cause: OSError"

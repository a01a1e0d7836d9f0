"""What the programs here do that build or test the package in another folder than this one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ["anchornet_ext", "csrc", "CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml"]
SOURCES += ["setup.py", "MANIFEST.in"]


def copy_sources(folder: Path) -> None:
    """All that a build needs, without what earlier builds left here."""
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.so")
            shutil.copytree(source, folder / name, ignore=ignore)
        else:
            shutil.copy(source, folder / name)


def environment_of(package: Path) -> dict[str, str]:
    """In which `anchornet_ext` is the one in the folder `package`."""
    return {**os.environ, "PYTHONPATH": str(package), "PYTHONDONTWRITEBYTECODE": "1"}


def run_operator_tests(
    python: str | Path, package: Path, pytest_arguments: Sequence[str] = ()
) -> int:
    """Runs python_tests/ops on the package in the folder `package`; the exit status of pytest."""
    tests = [ROOT / "python_tests" / "ops", "--rootdir", ROOT, "-c", ROOT / "pyproject.toml"]
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
    command += ["-m", "not cuda_on_host"]  # other libraries, compiled for the torch that is here
    # Not from the source folder: its package, not the copy, would be imported there.
    environment = environment_of(package)
    return subprocess.run([*command, *pytest_arguments], cwd=package, env=environment).returncode

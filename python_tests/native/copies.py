"""What the programs here do that build or test the package in another folder than this one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
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


def build_library(folder: Path, switches: Mapping[str, str]) -> int:
    """Builds the library in a copy of the sources; what was printed is shown if that fails."""
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    with (folder / "log").open("w") as log:
        environment = {**os.environ, **switches}
        status = subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log)
    if status.returncode:
        print((folder / "log").read_text()[-8000:])
    return status.returncode


def run_operator_tests(
    python: str | Path,
    package: Path,
    pytest_arguments: Sequence[str] = (),
    tests: Sequence[Path] = (ROOT / "python_tests" / "ops",),
    switches: Mapping[str, str] | None = None,
) -> int:
    """Runs python_tests/ops, or other tests, on the package in the folder `package`.

    `switches` are variables of the environment. Returns the exit status of pytest.
    """
    where = [*tests, "--rootdir", ROOT, "-c", ROOT / "pyproject.toml"]
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *where]
    command += ["-m", "not cuda_on_host"]  # other libraries, compiled for the torch that is here
    # Not from the source folder: its package, not the copy, would be imported there.
    environment = {**environment_of(package), **(switches or {})}
    return subprocess.run([*command, *pytest_arguments], cwd=package, env=environment).returncode

"""Runs the operator tests on the library built here, unrebuilt, under another torch.

    python python_tests/native/second_torch.py [--torch torch==2.13.0] [--venv FOLDER] [-- ...]

Makes a virtual environment with that torch and without torchvision, copies the package with its
libraries beside it, and runs python_tests/ops there. Exit status: that of pytest.
"""

from __future__ import annotations

import argparse
import hashlib
import shlex
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from copies import ROOT, environment_of, run_operator_tests

TEST_TOOLS = ["numpy", "hypothesis", "pytest", "pytest-timeout", "expecttest"]

# Run in the second environment, before the tests: the copy is what is imported, its library is the
# file that was built here, and the torch is another one.
CHECK = """
import hashlib, sys, torch, anchornet_ext
from anchornet_ext import _C, _extension
digest = hashlib.sha256(open(_C.__file__, "rb").read()).hexdigest()
built_with = _extension.build_info()["torch_built_with"]
print(f"torch {torch.__version__}, library built with torch {built_with}, {_C.__file__}")
if not _C.__file__.startswith(sys.argv[1]):
    sys.exit(f"expected the library in {sys.argv[1]}")
if digest != sys.argv[2]:
    sys.exit("the library is not the one that was built here")
if torch.__version__.split("+")[0] == built_with.split("+")[0]:
    sys.exit(f"the second torch is the one the library was built with: {built_with}")
if _extension.cuda_load_error is not None:
    sys.exit(f"the CUDA library does not load: {_extension.cuda_load_error}")
"""


def built_library() -> Path:
    """The package's `_C`, in the source folder (an editable or in-place build)."""
    suffix = f".{sys.implementation.cache_tag}-"
    found = [path for path in (ROOT / "anchornet_ext").glob("_C.*so") if suffix in path.name]
    if len(found) != 1:
        raise SystemExit(
            f"expected one built library for {sys.implementation.cache_tag} in "
            f"{ROOT / 'anchornet_ext'}, found {len(found)}; run: "
            "pip install --no-build-isolation --editable ."
        )
    return found[0]


def make_environment(folder: Path, requirements: list[str]) -> Path:
    """The interpreter of a virtual environment with `requirements`; one that exists is reused."""
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
    return python


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", default="torch==2.13.0", help="the requirement for pip")
    parser.add_argument("--pip-args", default="", help="more arguments for pip, as one string")
    parser.add_argument("--venv", type=Path, help="environment to create or reuse; else temporary")
    parser.add_argument("pytest_args", nargs="*", help="after --, for pytest")
    args = parser.parse_args()

    library = built_library()
    digest = hashlib.sha256(library.read_bytes()).hexdigest()
    with tempfile.TemporaryDirectory(prefix="second_torch_") as temporary:
        folder = Path(temporary).resolve()
        requirements = [args.torch, *TEST_TOOLS, *shlex.split(args.pip_args)]
        python = make_environment((args.venv or folder / "venv").resolve(), requirements)
        copied = folder / "package"
        shutil.copytree(
            ROOT / "anchornet_ext",
            copied / "anchornet_ext",
            ignore=shutil.ignore_patterns("__pycache__", "pretrained"),
        )
        check = [python, "-c", CHECK, str(copied), digest]
        if subprocess.run(check, cwd=folder, env=environment_of(copied)).returncode:
            return 1
        return run_operator_tests(python, copied, args.pytest_args)


if __name__ == "__main__":
    sys.exit(main())

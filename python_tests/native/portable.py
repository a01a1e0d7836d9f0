"""Builds the CPU kernels as for processors other than x86, and runs the operator tests on them.

    python python_tests/native/portable.py [-- ...]

Of what those compile, the branches without AVX-512 and AVX2 and a `char` without sign (as on ARM)
can be had everywhere. A warning stops the build. Exit status: that of pytest.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from copies import build_library, copy_sources, environment_of, run_operator_tests

BUILD = {
    "ANCHORNET_PORTABLE": "1",
    "BUILD_NO_CUDA": "1",
    "CMAKE_ARGS": "-DCMAKE_CXX_FLAGS='-funsigned-char -Werror'",
}
CHECK = """
import sys
from anchornet_ext import _C, _extension
chosen = _extension.instruction_set()
print(f"kernels for instruction set {chosen!r}, {_C.__file__}")
sys.exit(not _C.__file__.startswith(sys.argv[1]) or chosen != "any")
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pytest_args", nargs="*", help="after --, for pytest")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="portable_") as temporary:
        folder = Path(temporary).resolve()
        copy_sources(folder)
        if build_library(folder, BUILD):
            return 1
        check = [sys.executable, "-c", CHECK, str(folder)]
        if subprocess.run(check, cwd=folder, env=environment_of(folder)).returncode:
            print(
                "portable: expected the kernels of this build, for any processor", file=sys.stderr
            )
            return 1
        return run_operator_tests(sys.executable, folder, args.pytest_args)


if __name__ == "__main__":
    sys.exit(main())

"""Builds the CPU kernels with two of GCC's sanitizers and runs the operator tests on them.

Any report of AddressSanitizer or UndefinedBehaviorSanitizer fails the run: a read or write outside
of what was allocated, also by one vector past a tensor, of freed memory, an overflow of signed
arithmetic, an index beyond a std::vector.

    python python_tests/native/sanitized.py [--tests TEST ...] [-- ...]

That such reports come is checked first, with mistakes made on purpose (canary.cpp). The compiler's
libraries are loaded before all others. ATEN_CPU_CAPABILITY chooses the kernels.
Exit status: that of pytest, or 1.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from copies import ROOT, build_library, copy_sources, environment_of, run_operator_tests

BUILD = {"BUILD_NO_CUDA": "1", "CMAKE_ARGS": "-DANCHORNET_SANITIZE=ON -DCMAKE_CXX_FLAGS=-Werror"}
#: The C++ library is loaded early because AddressSanitizer looks for its exceptions at the start.
PRELOADED = ("libasan.so", "libubsan.so", "libstdc++.so.6")
CANARY = """
import sys
import torch
from anchornet_ext import _C, _extension
if not _C.__file__.startswith(sys.argv[1]):
    sys.exit(f"this is another library: {_C.__file__}")
print(f"kernels for instruction set {_extension.instruction_set()!r}")
canary, floats = torch.ops.anchornet_canary, torch.zeros(16)
assert canary.sum_of_floats(floats, 16) == 0 and canary.product_of(2**31, 2**31) == 2**62
print("ready")
sys.stdout.flush()
if sys.argv[2] == "memory":
    canary.sum_of_floats(floats, 17)
else:
    canary.product_of(2**32, 2**31)
"""
#: What each mistake of the canary must be called.
EXPECTED = {"memory": "heap-buffer-overflow", "arithmetic": "signed integer overflow"}


def preloaded() -> str:
    """The sanitizers' libraries, for LD_PRELOAD."""
    compiler = os.environ.get("CXX", "g++").split()
    paths = []
    for name in PRELOADED:
        command = [*compiler, f"-print-file-name={name}"]
        path = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        if not Path(path).is_absolute():
            raise SystemExit(f"sanitized: {compiler[0]} has no {name}; GCC's sanitizers are needed")
        paths.append(str(Path(path).resolve()))
    return " ".join(paths)


def sanitizer_environment(reports: Path) -> dict[str, str]:
    """In which reports about memory become files whose names begin with `reports`.

    What tests print would be captured, and lost when a report ends the process. Those about
    arithmetic go to stderr all the same, which pytest must not take. Leaks are not looked for:
    Python itself leaves much behind. Too large an allocation fails, as it does without sanitizers.
    """
    options = f"log_path={reports}:"
    return {
        "LD_PRELOAD": preloaded(),
        "ASAN_OPTIONS": options + "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def take_reports(reports: Path) -> str:
    """The text of all of them, which are deleted."""
    texts = []
    for path in sorted(reports.parent.glob(f"{reports.name}*")):
        texts.append(path.read_text(errors="replace"))
        path.unlink()
    return "\n".join(texts)


def sees_mistakes(folder: Path, environment: Mapping[str, str], reports: Path) -> bool:
    for mistake, expected in EXPECTED.items():
        command = [sys.executable, "-c", CANARY, str(folder), mistake]
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        report = take_reports(reports) + run.stderr
        if "ready" not in run.stdout or run.returncode == 0 or expected not in report:
            print(f"sanitized: a mistake in {mistake} was not reported", run.stdout, report)
            return False
        if mistake == "memory":
            print(run.stdout.splitlines()[0])
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tests", nargs="+", type=Path, default=[ROOT / "python_tests" / "ops"])
    parser.add_argument("pytest_args", nargs="*", help="after --, for pytest")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sanitized_") as temporary:
        folder = Path(temporary).resolve()
        reports = folder / "report"
        sanitizers = sanitizer_environment(reports)
        copy_sources(folder)
        shutil.copy(Path(__file__).with_name("canary.cpp"), folder / "csrc" / "ops" / "cpu")
        if build_library(folder, BUILD):
            return 1
        if not sees_mistakes(folder, {**environment_of(folder), **sanitizers}, reports):
            return 1
        tests = [test.resolve() for test in args.tests]
        pytest_args = ["--capture=sys", *args.pytest_args]  # see sanitizer_environment
        status = run_operator_tests(sys.executable, folder, pytest_args, tests, sanitizers)
        found = take_reports(reports)
        if found:
            print(found)
            print("sanitized: see the reports above", file=sys.stderr)
            return status or 1
        return status


if __name__ == "__main__":
    sys.exit(main())

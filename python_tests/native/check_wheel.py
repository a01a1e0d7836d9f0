"""Builds the wheel as `pip install --no-build-isolation .` does, and checks what is in it.

    BUILD_NO_CUDA=1 python python_tests/native/check_wheel.py

The sources are copied first, so that the build is a clean one and nothing that lies here gets into
the wheel. pip then installs it into an empty folder, and `anchornet doctor` is run from there.
Exit status: 0 when all of it is right.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from copies import copy_sources, environment_of


def wheel_problems(names: list[str], with_cuda: bool) -> list[str]:
    """What is wrong with a wheel that holds the files `names`; empty when nothing is."""
    problems = []
    native = [name for name in names if name.startswith("anchornet_ext/_C.")]
    tag = sys.implementation.cache_tag
    if len(native) != 1 or not native[0].startswith(f"anchornet_ext/_C.{tag}-"):
        problems.append(f"expected one anchornet_ext/_C.{tag}-*.so, found {native}")
    if ("anchornet_ext/_cuda.so" in names) != with_cuda:
        state = "missing" if with_cuda else "there, but the build is without CUDA"
        problems.append(f"anchornet_ext/_cuda.so is {state}")
    wanted = [
        "anchornet_ext/py.typed",
        "anchornet_ext/__init__.py",
        "anchornet_ext/ops/exit_step.py",
    ]
    problems += [f"{name} is missing" for name in wanted if name not in names]
    for name in names:
        top = name.split("/")[0]
        if top != "anchornet_ext" and not top.endswith(".dist-info"):
            problems.append(f"{name} does not belong in the wheel")
        if Path(name).suffix in {".cpp", ".cu", ".cuh", ".h", ".o", ".pyc", ".a"}:
            problems.append(f"{name} is no part of an installed package")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-seconds", type=float, help="fail if the build takes longer")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="check_wheel_") as temporary:
        folder = Path(temporary).resolve()
        (folder / "source").mkdir()
        copy_sources(folder / "source")
        start = time.perf_counter()
        pip = [sys.executable, "-m", "pip"]
        build = [*pip, "wheel", "-v", "--no-build-isolation", "--no-deps", "-w", folder / "wheel"]
        with (folder / "log").open("w") as log:
            status = subprocess.run([*build, folder / "source"], stdout=log, stderr=log).returncode
        seconds = time.perf_counter() - start
        text = (folder / "log").read_text()
        if status:
            print(text[-8000:])
            return 1
        for line in text.splitlines():
            if "anchornet_ext build:" in line:
                print(line.strip())
        (wheel,) = (folder / "wheel").glob("*.whl")
        names = zipfile.ZipFile(wheel).namelist()
        with_cuda = "anchornet_ext build: CUDA kernels: on" in text
        print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size} bytes, {seconds:.1f} s")
        problems = wheel_problems(names, with_cuda)
        if args.max_seconds is not None and seconds > args.max_seconds:
            problems.append(f"the build took {seconds:.1f} s, more than {args.max_seconds:g}")

        target = folder / "installed"
        install = [*pip, "install", "--quiet", "--no-deps", "--no-index", "--target", target, wheel]
        subprocess.run(install, check=True)
        doctor = subprocess.run(
            [sys.executable, "-m", "anchornet_ext.cli", "doctor"],
            cwd=folder,
            env=environment_of(target),
            capture_output=True,
            text=True,
        )
        if doctor.returncode:
            problems.append(f"anchornet doctor says:\n{doctor.stdout}{doctor.stderr}")
    for problem in problems:
        print(f"check_wheel: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

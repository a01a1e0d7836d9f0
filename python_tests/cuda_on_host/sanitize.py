"""Runs the operators' CUDA tests on a GPU, plainly and then under compute-sanitizer's tools.

    PYTHONPATH=python_tests python -m cuda_on_host.sanitize [TOOL ...]

TOOL: memcheck, racecheck, synccheck, initcheck; without one, all four. Exit status 0: all passed,
and every kernel was among what ran; 1: something failed; 2: there is nothing to run it on, and the
message says what is missing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from cuda_on_host.sanitizer_output import OURS, failures_of_pytest, kernels_not_run, read_tool

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
# Under the tools every access is looked at, so that long tests would take hours. Left out are what
# is not about kernels (opcheck, compilation, gradients) and what takes gigabytes.
QUICK = "not opcheck and not compile and not gradient and not beyond"
PYTEST = (sys.executable, "-m", "pytest", "-q", "-m", "cuda", "--timeout=0")
QUICK_TESTS = (*PYTEST, "python_tests/ops", "-k", QUICK)


def what_is_missing() -> str | None:
    """Why the CUDA kernels cannot run here, or None."""
    import torch

    from anchornet_ext import _extension

    if not torch.cuda.is_available():
        return "torch sees no CUDA device (without one, `make test` runs the kernels on the CPU)"
    if not _extension.cuda_loaded:
        return (
            f"the CUDA kernels are not built or do not load ({_extension.cuda_load_error}); "
            "build with FORCE_CUDA=1"
        )
    return None


def find_sanitizer() -> str | None:
    return shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )


def looks_at_ours_only(tool: str) -> bool:
    """Whether other kernels, torch's among them, may be left alone.

    Not by initcheck, which would take what they wrote for never written.
    """
    return tool != "initcheck"


def command(sanitizer: str, tool: str) -> list[str]:
    """The tool, running the operators' quick tests."""
    options = ["--tool", tool, "--target-processes", "all", "--print-limit", "100000"]
    if looks_at_ours_only(tool):
        options += ["--error-exitcode", "1", "--kernel-name", f"kernel_substring={OURS}"]
    if tool == "memcheck":  # torch asks CUDA for what may not be there, and handles the answer
        options += ["--report-api-errors", "no"]
    return [sanitizer, *options, *QUICK_TESTS]


def environment() -> dict[str, str]:
    # Each tensor an allocation of its own, so that memcheck sees where it ends.
    return {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def run(arguments: list[str], env: dict[str, str] | None = None) -> tuple[str, int]:
    """Output and exit status; the output is shown while it comes."""
    lines = []
    with subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    return "".join(lines), process.returncode


def plain_tests() -> list[str]:
    """All CUDA tests as they are; then whether the quick ones launch every kernel."""
    problems = failures_of_pytest(run([*PYTEST, "python_tests"])[0])
    with tempfile.TemporaryDirectory() as folder:
        names = Path(folder) / "kernels"
        watched = [*QUICK_TESTS, "-p", "cuda_on_host.launched_kernels"]
        path = os.pathsep.join([str(ROOT / "python_tests"), os.environ.get("PYTHONPATH", "")])
        run(watched, {**os.environ, "LAUNCHED_KERNELS": str(names), "PYTHONPATH": path})
        launched = names.read_text().splitlines() if names.exists() else []
    sources = [path.read_text() for path in sorted((ROOT / "csrc/ops/cuda").glob("*.cu"))]
    missing = kernels_not_run(sources, launched)
    if missing:
        problems.append(f"the tests for the tools do not launch {', '.join(missing)}")
    return problems


def main(tools: list[str]) -> int:
    unknown = sorted(set(tools) - set(TOOLS))
    if unknown:
        print(f"test-cuda: unknown tool {unknown[0]!r}; there are {', '.join(TOOLS)}")
        return 2
    missing = what_is_missing()
    if missing is not None:
        print(f"test-cuda: nothing was tested on a GPU: {missing}")
        return 2
    problems = {"pytest": plain_tests()}
    sanitizer = find_sanitizer()
    if sanitizer is None:
        problems["compute-sanitizer"] = ["not on the PATH; it comes with the CUDA toolkit"]
    else:
        for tool in tools or TOOLS:
            print(f"test-cuda: {tool}", flush=True)
            output, status = run(command(sanitizer, tool), environment())
            outcome = read_tool(tool, output, status, only_ours=not looks_at_ours_only(tool))
            problems[tool] = outcome.problems
            if outcome.others:
                print(f"test-cuda: {tool}: {outcome.others} reports about others' kernels")
    for what, found in problems.items():
        for problem in found:
            print(f"test-cuda: {what}: {problem}")
        print(f"test-cuda: {what} {'FAILED' if found else 'passed'}")
    failed = {what for what, found in problems.items() if found}
    return 2 if failed == {"compute-sanitizer"} else int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

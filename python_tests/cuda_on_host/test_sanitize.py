"""`make test-cuda`: what it runs, how it reads the answers, and that nothing run is no success."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
import torch
from cuda_on_host import launched_kernels, sanitize
from cuda_on_host.sanitizer_output import failures_of_pytest, kernels_not_run, read_tool, reports_of

from anchornet_ext import _extension

PASSED = "........\n8 passed, 3 deselected in 41.20s\n"
CLEAN = f"========= COMPUTE-SANITIZER\n{PASSED}========= ERROR SUMMARY: 0 errors\n"
CLEAN_RACES = (
    f"========= COMPUTE-SANITIZER\n{PASSED}"
    "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
)
INVALID = """\
========= COMPUTE-SANITIZER
========= Invalid __global__ read of size 4 bytes
=========     at void anchornet::cells::(anonymous namespace)::fuse_kernel<4>(Arguments)+0x2d0
=========     by thread (3,0,0) in block (1,0,0)
=========     Address 0x7f3a64000404 is out of bounds
=========     and is 5 bytes after the nearest allocation at 0x7f3a64000000 of size 1024 bytes
=========     Saved host backtrace up to driver entry point at kernel launch time
=========         Host Frame: [0x2d8f3a]
=========                in /usr/lib/x86_64-linux-gnu/libcuda.so.1
=========
"""
UNWRITTEN = """\
========= Uninitialized __global__ memory read of size 4 bytes
=========     at 0x150 in void {kernel}<int=256>(unsigned int const *,int)
=========     by thread (0,0,0) in block (0,0,0)
=========     Address 0x7fc406200400
=========
"""
RACE = f"""\
========= COMPUTE-SANITIZER
========= Warning: Race reported between Write access at anchornet::select_kernel(int *)+0x28b0
=========     and Write access at anchornet::select_kernel(int *)+0x3d20 [812 hazards]
=========
{PASSED}========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)
"""


def problems_of(tool: str, output: str, returncode: int = 0) -> list[str]:
    only_ours = not sanitize.looks_at_ours_only(tool)
    return read_tool(tool, output, returncode, only_ours=only_ours).problems


@pytest.mark.parametrize("tool", sanitize.TOOLS)
def test_a_clean_run_is_a_success(tool: str) -> None:
    assert problems_of(tool, CLEAN_RACES if tool == "racecheck" else CLEAN) == []


def test_an_invalid_read_is_a_problem() -> None:
    output = f"{INVALID}{PASSED}========= ERROR SUMMARY: 1 error\n"
    assert problems_of("memcheck", output, 1) == ["Invalid __global__ read of size 4 bytes"]
    (report,) = reports_of(output)
    assert "fuse_kernel" in report
    assert "8 passed" not in report


def test_warnings_of_races_are_problems() -> None:
    (problem,) = problems_of("racecheck", RACE)
    assert problem.startswith("Warning: Race reported between Write access")


def test_unwritten_memory_counts_in_kernels_of_this_package_alone() -> None:
    ours = UNWRITTEN.format(kernel="anchornet::patches::_GLOBAL__N__56_tmp::gather_kernel")
    torchs = UNWRITTEN.format(kernel="at::native::reduce_kernel")
    end = PASSED + "========= ERROR SUMMARY: {} errors\n"
    outcome = read_tool("initcheck", torchs * 2 + end.format(2), 0, only_ours=True)
    assert outcome == ([], 2)
    outcome = read_tool("initcheck", torchs + ours + end.format(2), 0, only_ours=True)
    assert outcome == (["Uninitialized __global__ memory read of size 4 bytes"], 1)
    # Some may be this package's and were not shown.
    (problem,) = problems_of("initcheck", torchs + end.format(101))
    assert problem == "initcheck counted 101 errors and showed 1"


@pytest.mark.parametrize(
    ("output", "status", "problem"),
    [
        (PASSED, 0, "printed no summary"),
        (CLEAN, 255, "ended with status 255"),
        (CLEAN.replace("0 errors", "7 errors"), 1, "counted 7 errors and showed 0"),
        (CLEAN.replace(PASSED, "Killed\n"), 0, "did not come to its end"),
        (CLEAN.replace("8 passed", "8 skipped"), 0, "8 skipped"),
        (CLEAN.replace("8 passed", "1 failed, 7 passed"), 1, "1 failed, 7 passed"),
        ("", 1, "no summary"),
    ],
)
def test_what_has_not_run_is_no_success(output: str, status: int, problem: str) -> None:
    assert any(problem in found for found in problems_of("memcheck", output, status))


@pytest.mark.parametrize(
    ("output", "good"),
    [
        ("12 passed, 4 skipped, 90 deselected in 3.21s", True),
        ("===== 12 passed, 1 warning in 93.21s (0:01:33) =====", True),
        ("===== 1 failed, 12 passed in 93.21s (0:01:33) =====", False),
        ("12 passed, 2 errors in 3.21s", False),
        ("4 skipped, 90 deselected in 3.21s", False),
        ("90 deselected in 3.21s", False),
        ("no tests ran in 0.01s", False),
        ("12 passed in a comment", False),
    ],
)
def test_pytests_last_line_is_read(output: str, good: bool) -> None:
    assert (failures_of_pytest(f"..ss\n{output}\n") == []) is good


def test_commands() -> None:
    for tool in sanitize.TOOLS:
        command = sanitize.command("/opt/compute-sanitizer", tool)
        assert command[:3] == ["/opt/compute-sanitizer", "--tool", tool]
        assert command[command.index("-m") + 1] == "pytest"
        # Else memory that torch's kernels wrote would pass for unwritten.
        assert ("--kernel-name" in command) is (tool != "initcheck")
    assert sanitize.environment()["PYTORCH_NO_CUDA_MEMORY_CACHING"] == "1"


def test_every_kernel_of_the_sources_is_known() -> None:
    sources = [path.read_text() for path in (sanitize.ROOT / "csrc/ops/cuda").glob("*.cu")]
    names = kernels_not_run(sources, [])
    assert len(names) == sum(text.count("__global__ void") for text in sources)
    launched = [f"void anchornet::(anonymous namespace)::{name}<float>(int)" for name in names]
    assert kernels_not_run(sources, launched) == []
    assert kernels_not_run(sources, launched[1:]) == names[:1]
    assert kernels_not_run(sources, ["void at::native::gather_kernel<float>(int)"]) == names


def test_the_plugin_writes_what_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCHED_KERNELS", str(tmp_path / "names"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # the CPU's operators then
    config = types.SimpleNamespace(stash=pytest.Stash())
    session = types.SimpleNamespace(config=config)
    launched_kernels.pytest_sessionstart(session)  # type: ignore[arg-type]
    torch.ones(3).cumsum(0)
    launched_kernels.pytest_sessionfinish(session)  # type: ignore[arg-type]
    assert "aten::cumsum" in (tmp_path / "names").read_text().splitlines()


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, int]]:
    """What the tools print; a kernel library and compute-sanitizer are there."""
    answers: dict[str, tuple[str, int]] = {"pytest": (PASSED, 0)}
    every = "\n".join(
        f"anchornet::{name}"
        for path in (sanitize.ROOT / "csrc/ops/cuda").glob("*.cu")
        for name in kernels_not_run([path.read_text()], [])
    )

    def run(arguments: list[str], env: dict[str, str] | None = None) -> tuple[str, int]:
        if env is not None and "LAUNCHED_KERNELS" in env:
            Path(env["LAUNCHED_KERNELS"]).write_text(every)
        tool = arguments[2] if "--tool" in arguments else "pytest"
        clean = CLEAN_RACES if tool == "racecheck" else CLEAN
        return answers.get(tool, (clean, 0))

    monkeypatch.setattr(sanitize, "run", run)
    monkeypatch.setattr(sanitize, "find_sanitizer", lambda: "/opt/compute-sanitizer")
    monkeypatch.setattr(sanitize, "what_is_missing", lambda: None)
    return answers


def test_all_passed(on_a_gpu: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert sanitize.main([]) == 0
    said = capsys.readouterr().out
    for what in ("pytest", *sanitize.TOOLS):
        assert f"test-cuda: {what} passed" in said


def test_one_failure_is_a_failure(
    on_a_gpu: dict[str, tuple[str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    on_a_gpu["racecheck"] = (RACE, 1)
    assert sanitize.main([]) == 1
    said = capsys.readouterr().out
    assert "test-cuda: racecheck FAILED" in said
    assert "test-cuda: memcheck passed" in said
    assert sanitize.main(["memcheck"]) == 0
    on_a_gpu["pytest"] = ("1 failed in 2.00s", 1)
    assert sanitize.main(["memcheck"]) == 1


@pytest.mark.usefixtures("on_a_gpu")
def test_kernels_that_no_test_launches_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sanitize, "run", lambda arguments, env=None: (CLEAN + CLEAN_RACES, 0))
    assert sanitize.main(["memcheck"]) == 1
    assert "do not launch bin_kernel, " in capsys.readouterr().out


@pytest.mark.usefixtures("on_a_gpu")
def test_no_sanitizer_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sanitize, "find_sanitizer", lambda: None)
    assert sanitize.main([]) == 2
    said = capsys.readouterr().out
    assert "test-cuda: pytest passed" in said
    assert "comes with the CUDA toolkit" in said


def test_no_gpu_is_said_and_is_no_success(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert sanitize.main([]) == 2
    assert "nothing was tested on a GPU: torch sees no CUDA device" in capsys.readouterr().out


def test_a_gpu_without_kernels_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_extension, "cuda_loaded", False)
    assert sanitize.main([]) == 2
    assert "build with FORCE_CUDA=1" in capsys.readouterr().out


def test_an_unknown_tool_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert sanitize.main(["memcheck", "leakcheck"]) == 2
    assert "unknown tool 'leakcheck'" in capsys.readouterr().out


def test_output_is_shown_and_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert sanitize.run(["sh", "-c", "echo one; echo two >&2; exit 3"]) == ("one\ntwo\n", 3)
    assert capsys.readouterr().out == "one\ntwo\n"

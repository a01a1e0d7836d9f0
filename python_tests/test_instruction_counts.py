"""benchmarks/instruction_counts.py: what it reads, puts together and shows."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from benchmark_scripts import load_script

GATHER = (
    "torch::stable::detail::boxer<torch::stable::Tensor (long), "
    "&anchornet::patches::(anonymous namespace)::gather_patches>::boxed_fn(unsigned long*)"
)
EXIT = GATHER.replace("patches::(anonymous namespace)::gather_patches", "exit::exit_step_cpu")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("instruction_counts")


def write_dump(path: Path, function: str, instructions: int, events: str = "Ir") -> None:
    """The lines of callgrind's files that matter, and some that do not."""
    path.write_text(
        f"# callgrind format\nversion: 1\npart: 1\ndesc: Trigger: --dump-after={function}\n"
        f"events: {events}\nsummary: {instructions + 5}\n\nfn=(1) main\n16 400\n"
        f"\ntotals: {instructions}\n"
    )


def case_of(operator: str, case: str = "NCHW") -> dict[str, object]:
    return {"operator": operator, "case": case, "images": 2, "elements": 10}


def test_reads_the_operators_calls_in_order(script: ModuleType, tmp_path: Path) -> None:
    output = tmp_path / "counts"
    for number in range(1, 13):  # 10 comes after 9, not after 1
        write_dump(tmp_path / f"counts.{number}", GATHER, 100 + number)
    write_dump(tmp_path / "counts.3", "boxer<long (), &vision::cuda_version>::boxed_fn()", 7)
    got = script.read_dumps(output)
    assert [count for _, count in got] == [101, 102, *range(104, 113)]
    assert {function for function, _ in got} == {GATHER}


@pytest.mark.parametrize("change", [("totals", "sum"), ("events: Ir", "events: Dr"), ("Trig", "T")])
def test_refuses_other_files(script: ModuleType, tmp_path: Path, change: tuple[str, str]) -> None:
    path = tmp_path / "counts.1"
    write_dump(path, GATHER, 1)
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(ValueError, match=r"counts\.1 has no trigger, totals or events"):
        script.read_dumps(tmp_path / "counts")


def test_the_second_call_of_each_case_counts(script: ModuleType) -> None:
    cases = [case_of("gather_patches"), case_of("exit_step")]
    dumps = [(GATHER, 900), (GATHER, 500), (EXIT, 80), (EXIT, 60)]
    assert [count.instructions for count in script.counts_of(cases, dumps)] == [500, 60]
    with pytest.raises(ValueError, match="2 cases were called twice, but 3 calls counted"):
        script.counts_of(cases, dumps[:3])
    with pytest.raises(ValueError, match=r"expected a call of exit_step, counted was .*gather"):
        script.counts_of(cases, dumps[:3] + dumps[1:2])


def file_of(script: ModuleType, counts: dict[str, int]) -> dict[str, object]:
    return {
        "format": script.FORMAT,
        "torch": "2",
        "instruction_set": "AVX2",
        "valgrind": "valgrind-3",
        "compiler": "GCC",
        "batch": 2,
        "counts": [
            {**case_of("gather_patches", case), "instructions": n} for case, n in counts.items()
        ],
    }


def test_compares_files(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    new, old = tmp_path / "new.json", tmp_path / "old.json"
    new.write_text(json.dumps(file_of(script, {"NCHW": 600, "NHWC": 400})))
    old.write_text(json.dumps({**file_of(script, {"NCHW": 800, "bytes": 2}), "compiler": "Clang"}))
    monkeypatch.setattr(sys, "argv", ["counts", "--show", str(new), "--compare", str(old)])
    script.main()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert "AVX2," in lines[0]
    assert ["before:", "compiler", "Clang"] in lines
    assert ["NCHW", "300", "60.00", "400", "0.750"] in lines
    assert ["NHWC", "200", "40.00"] in lines
    assert lines[-1] == ["only", "before:", "gather_patches,", "bytes"]


@pytest.mark.parametrize("text", ["", "[]", '{"format": 0}', '{"format": 1, "counts": [{}]}'])
def test_refuses_what_is_no_file_of_counts(script: ModuleType, tmp_path: Path, text: str) -> None:
    path = tmp_path / "counts.json"
    path.write_text(text)
    with pytest.raises(SystemExit, match="is no file of instruction counts"):
        script.read(path)


def test_without_valgrind_it_says_so(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match="valgrind is not installed"):
        script.measure(None, 1)


PROGRAM = """
#include <initializer_list>
namespace torch::stable::detail {
template <class F, F* f> struct boxer_impl {
  __attribute__((noinline)) static int boxed_fn(int n) { return f(n); }
};
template <class F, F* f> struct boxer {
  __attribute__((noinline)) static int boxed_fn(int n) { return boxer_impl<F, f>::boxed_fn(n) + 1; }
};
}
namespace anchornet::patches { namespace {
__attribute__((noinline)) int gather_patches(int n) {
  volatile int sum = 0;
  for (int i = 0; i < n; ++i) sum = sum + i;
  return sum;
}
} }
int main() {
  using namespace torch::stable::detail;
  int sum = 0;
  for (int n : {1000, 2000, 4000}) {
    sum += boxer<int(int), &anchornet::patches::gather_patches>::boxed_fn(n);
  }
  return sum == 0;
}
"""


@pytest.mark.skipif(shutil.which("valgrind") is None, reason="valgrind is not installed")
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_callgrind_writes_a_file_for_each_call(script: ModuleType, tmp_path: Path) -> None:
    """A program whose functions are named as the operators are, and do known work."""
    source, program, output = tmp_path / "p.cpp", tmp_path / "p", tmp_path / "counts"
    source.write_text(PROGRAM)
    subprocess.run(["g++", "-std=c++17", "-O1", str(source), "-o", str(program)], check=True)
    command = ["valgrind", *script.callgrind_options(output), str(program)]
    subprocess.run(command, check=True, capture_output=True)
    functions, counts = zip(*script.read_dumps(output), strict=True)
    assert all("gather_patches" in function for function in functions)
    first, second, third = counts
    # Twice the iterations, twice the instructions, but for what does not depend on them.
    assert third - second == 2 * (second - first) > 0
    assert first < 2 * (second - first)

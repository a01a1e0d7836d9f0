"""`anchornet bench` as its users run it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from command_line import Command, in_this_process
from devices import needs_cuda

from anchornet_ext import _extension, cli
from anchornet_ext.benchmark import command, suites
from anchornet_ext.benchmark.harness import Case, Options, measure_case
from anchornet_ext.benchmark.rows import Results, Row
from anchornet_ext.evaluation.timing import Timing

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = ("operators", "--quick", "--operators", "exit_step", "--dtypes", "float32")


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    with in_this_process(capsys, "bench") as run:
        yield run


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of a quick run. Not to be changed."""
    file = tmp_path_factory.mktemp("bench") / "old.json"
    assert cli.main(["bench", *SMALL, "--threads", "1", "--json", str(file)]) == 0
    return file


def test_a_run_writes_what_it_shows(measured: Path, bench: Command) -> None:
    values = json.loads(measured.read_bytes())
    assert values["format"] == "anchornet_ext benchmark"
    assert values["environment"]["threads"] == 1
    assert values["environment"]["command"] == (
        "anchornet bench operators --dtypes float32 --threads 1 --quick --operators exit_step"
    )
    results = Results.load(measured)
    assert [row.name for row in results] == ["ours", "reference", "usual code", "floor"]
    for row in results:
        assert row.error is None
        assert row.time is not None
        assert 0 < row.time.low <= row.time.median <= row.time.high
        assert row.settings["operator"] == "exit_step"
    ours = next(iter(results))
    assert set(ours.ratios) == {"reference", "usual code", "floor"}

    status, text, _ = bench("--show", measured)
    assert status == 0
    assert "exit_step, batch 2" in text
    (line,) = [line for line in text.splitlines() if line.strip().startswith("ours")]
    assert "usual code" in line
    assert "floor" in line


def test_compare_reads_it(measured: Path, bench: Command, tmp_path: Path) -> None:
    file = tmp_path / "new.json"
    status, text, _ = bench(*SMALL, "--json", file, "--compare", measured)
    assert status == 0
    assert len(Results.load(file)) == 4
    assert "3 rows compared" in text
    assert "not alike" not in text
    assert "Only in" not in text


def test_a_file_can_be_compared_with_itself_and_overwritten(
    measured: Path, bench: Command, tmp_path: Path
) -> None:
    file = tmp_path / "same.json"
    file.write_bytes(measured.read_bytes())
    status, text, _ = bench("--show", file, "--compare", file)
    assert status == 0
    assert "3 rows compared: 0 slower, 0 faster" in text
    status, text, _ = bench(*SMALL, "--json", file, "--compare", file)
    assert status == 0
    assert "3 rows compared" in text
    assert file.read_bytes() != measured.read_bytes()


def test_threads_are_put_back_and_another_number_is_said(measured: Path, bench: Command) -> None:
    status, text, _ = bench(*SMALL, "--threads", 2, "--compare", measured)
    assert status == 0
    assert torch.get_num_threads() == 1
    assert "threads: 2 now, 1 then" in text


def test_a_file_is_measured_in_several_runs(measured: Path, bench: Command, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    more = [*SMALL[:-1], "bfloat16", "--threads", 1, "--json", file, "--update"]
    assert bench(*more).returncode == 0  # there is no such file yet
    assert len(Results.load(file)) == 4
    file.write_bytes(measured.read_bytes())
    assert bench(*more).returncode == 0
    assert bench(*more).returncode == 0  # again: in the place of the same rows
    both = Results.load(file)
    before = list(Results.load(measured))
    assert list(both)[:4] == before
    assert [row.settings["dtype"] for row in both] == ["float32"] * 4 + ["bfloat16"] * 4
    first, second = both.environment.command.split("; ")
    assert "float32" in first
    assert "bfloat16" in second

    status, text, error = bench(*SMALL, "--threads", 2, "--json", file, "--update")
    assert (status, text) == (2, "")
    assert "threads: 2 now, 1 then" in error
    assert len(Results.load(file)) == 8


@pytest.mark.parametrize(("freed", "kept"), [((), 1), (("--freed-memory", "returned"), 0)])
def test_freed_memory_is_kept_unless_told_otherwise(
    freed: tuple[str, ...], kept: int, bench: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[None] = []
    monkeypatch.setattr(command, "keep_freed_memory", lambda: asked.append(None))
    assert bench(*SMALL, *freed).returncode == 0
    assert len(asked) == kept


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "there is no suite 'nonsense'; there are operators"),
        (["--batches", "0"], "'0' is not a number from 1 on"),
        (["--batches", "8", "-3"], "-3"),
        (["--sizes", "big"], "'big'"),
        (["--threads", "0"], "'0'"),
        (["--repeats", "0"], "'0'"),
        (["--dtypes", "float8"], "float8"),
        (["--device", "abacus"], "abacus"),
        (["--device", "meta"], "only the CPU and CUDA devices"),
        (["--sizes", "102"], "102"),
        (["stream", "--sizes", "90"], "90"),
        (["stream", "--model", "no-such-model"], "no-such-model"),
        (["stream", "--backbones", "resnet51"], "resnet51"),
        (["--compare", "no-such-file.json"], "no-such-file.json"),
        (["--show", "no-such-file.json"], "no-such-file.json"),
        (["--json", "no-such-folder/new.json"], "no-such-folder"),
        (["--json", "."], "is a folder"),
        (["--update"], "--json"),
        (["--json", os.devnull], "no ordinary file"),
        (["--operators", "conv2d"], "conv2d"),
        (["--mixes", "none"], "none"),
    ],
)
def test_bad_arguments_are_one_line(
    arguments: list[str],
    said: str,
    bench: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)

    def measure(*_: Any) -> None:
        raise AssertionError("nothing should be measured")

    monkeypatch.setattr(command, "_run_suite", measure)
    status, text, error = bench(*arguments)
    assert status == 2
    assert not text
    last = error.strip().splitlines()[-1]
    assert said in last
    assert "error" in last
    assert len(error.strip().splitlines()) <= 2  # at most a line of usage before
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"format": "anchornet_ext latency"}', '{"rows": []}']
)
@pytest.mark.parametrize("option", ["--compare", "--show"])
def test_a_corrupt_or_foreign_file_is_one_line(
    content: str, option: str, bench: Command, tmp_path: Path
) -> None:
    file = tmp_path / "old.json"
    file.write_text(content)
    status, text, error = bench(*SMALL, option, file)
    assert status == 2
    assert not text
    assert str(file) in error
    assert error.startswith("anchornet: error: ")
    assert error.count("\n") == 1


def test_cuda_without_a_gpu_is_one_line(bench: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, _, error = bench(*SMALL, "--device", "cuda")
    assert status == 2
    assert "CUDA" in error
    assert error.count("\n") == 1


def test_a_device_without_operators_is_one_line(
    bench: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(_extension, "cuda_loaded", False)
    status, _, error = bench(*SMALL, "--device", "cuda")
    assert status == 2
    assert "CUDA kernels" in error
    assert error.count("\n") == 1
    status, _, error = bench(*SMALL, "--device", "cuda:3")
    assert status == 2
    assert "cuda:3" in error


@needs_cuda
def test_operators_and_localisation_on_a_gpu(bench: Command, tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    status, _, _ = bench("operators", "localisation", "--quick", "--device", "cuda", "--json", file)
    assert status == 0
    results = Results.load(file)
    assert results.environment.device_type == "cuda"
    assert not [row for row in results if row.error is not None and row.name == "ours"]


def made_up(name: str, rows: Callable[[Options], Iterator[Row]], **members: Any) -> Any:
    return SimpleNamespace(NAME=name, SUMMARY="made up", measure=rows, **members)


def use(monkeypatch: pytest.MonkeyPatch, *made: Any) -> None:
    """These suites instead of the package's."""
    table = {suite.NAME: suite for suite in made}
    monkeypatch.setattr(command, "SUITES", table)
    monkeypatch.setattr(suites, "SUITES", table)
    monkeypatch.setattr(command, "load_suite", table.__getitem__)


def a_row(suite: str, name: str) -> Row:
    return Row(suite, name, {}, Timing(1e-6, 1e-6, 1e-6))


def test_a_suite_that_breaks_off_stops_no_other(
    bench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaking(options: Options) -> Iterator[Row]:
        yield a_row("first", "a")
        raise RuntimeError("out of\nmemory")

    def whole(options: Options) -> Iterator[Row]:
        yield a_row("second", "b")

    use(monkeypatch, made_up("first", breaking), made_up("second", whole))
    file = tmp_path / "rows.json"
    status, text, _ = bench("--json", file)
    assert status == 1
    assert "RuntimeError: out of" in text
    rows = {row.name: row for row in Results.load(file)}
    assert set(rows) == {"a", "the rest", "b"}
    assert rows["the rest"].error == "RuntimeError: out of"


def test_nothing_to_measure_is_said(bench: Command) -> None:
    status, text, _ = bench("localisation", "--dtypes", "uint8")
    assert status == 0
    assert "nothing of this suite is measured" in text


def test_a_suites_own_members_are_used(bench: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def rows(options: Options) -> Iterator[Row]:
        asked.append((options.batches, options.repeats, options.quick, options.arguments.colour))
        yield a_row("one", "shown")
        yield a_row("one", "hidden")
        yield Row("one", "failed", {}, error="no memory")

    def check(options: Options) -> None:
        if options.arguments.colour == "grey":
            raise ValueError("--colour grey is none")

    suite = made_up(
        "one",
        rows,
        add_arguments=lambda group: group.add_argument("--colour"),
        check=check,
        in_table=lambda row: row.name == "shown",
        describe=lambda row: "<- this one",
        summarise=lambda rows: [f"{len(rows)} in all"],
    )
    use(monkeypatch, suite)
    status, text, _ = bench("--colour", "red", "--batches", 3, 3, 5, "--repeats", 4)
    assert status == 0
    assert asked == [((3, 5), 4, False, "red")]
    assert "<- this one" in text
    assert "hidden" not in text
    assert "no memory" in text  # a failure is always shown
    assert "3 in all" in text
    assert bench("--colour", "grey")[0] == 2
    assert len(asked) == 1


def test_an_interruption_keeps_what_was_measured(
    bench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the midst of a measurement."""

    def interrupted() -> None:
        signal.raise_signal(signal.SIGINT)

    def rows(options: Options) -> Iterator[Row]:
        yield a_row("one", "before")
        yield from measure_case(Case("one", {}, lambda: {"ours": interrupted}), options)
        yield a_row("one", "after")

    use(monkeypatch, made_up("one", rows))
    file = tmp_path / "rows.json"
    # A shell's job in the background begins with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        status, text, error = bench("--json", file)
    finally:
        signal.signal(signal.SIGINT, before)
    assert status == 130
    assert error == "anchornet: interrupted\n"
    assert [row.name for row in Results.load(file)] == ["before"]
    assert f"1 row is in {file}" in text


def test_rows_are_written_as_they_come(
    bench: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is killed leaves what it had."""
    file = tmp_path / "rows.json"
    kept: list[int] = []

    def rows(options: Options) -> Iterator[Row]:
        for number in range(3):
            yield a_row("one", str(number))
            kept.append(len(Results.load(file)))

    use(monkeypatch, made_up("one", rows))
    monkeypatch.setattr(command, "_BETWEEN_SAVES", -1.0)
    assert bench("--json", file).returncode == 0
    assert kept == [1, 2, 3]

"""The suites end_to_end, breakdown and memory, on a small network."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from command_line import Command, in_this_process

from anchornet_ext.benchmark import breakdown, end_to_end, memory
from anchornet_ext.benchmark.harness import Options
from anchornet_ext.benchmark.networks import random_classifier, with_statistics
from anchornet_ext.models import build_backbone, count_macs

BACKBONE = "mobilenet_v3_small"
#: The dense network's rows of a large batch.
DENSE = {"dense", "dense one by one", "dense in 8s", "dense in 32s"}


def ticks() -> Iterator[float]:
    """A clock on which every call takes a second."""
    now = 0.0
    while True:
        yield now
        now += 1.0


def options(*batches: int, **arguments: object) -> Options:
    clock = ticks()
    return Options(
        arguments=Namespace(**arguments),
        backbones=(BACKBONE,),
        batches=batches,
        sizes=(112,),
        repeats=1,
        clock=lambda: next(clock),
    )


@pytest.fixture(scope="module", autouse=True)
def networks_built_once() -> Iterator[None]:
    """Of each name, size and dtype: building and tuning them takes longer than most tests here."""
    with pytest.MonkeyPatch.context() as patch:
        built: dict[tuple[object, ...], end_to_end.Networks] = {}
        build = end_to_end.Networks

        def networks(
            name: str, size: int, dtype: torch.dtype, options: Options
        ) -> end_to_end.Networks:
            key = (name, size, dtype)
            if key not in built:
                built[key] = build(name, size, dtype, options)
            return built[key]

        patch.setattr(end_to_end, "Networks", networks)
        yield


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    with in_this_process(capsys, "bench") as run:
        yield run


def test_theoretical_is_what_the_macs_say() -> None:
    rows = {row.name: row for row in end_to_end.measure(options(2))}
    known = {f"exit {t}, known" for t in (3, 4, 5)}
    exits = {f"exit {t}" for t in range(1, 6)}
    assert set(rows) == {"dense", "dense one by one"} | exits | known
    dense = count_macs(build_backbone(BACKBONE, 1000), (3, 112, 112))
    per_exit = random_classifier(BACKBONE).fold().macs_per_exit((112, 112))
    for exit_step, macs in enumerate(per_exit, start=1):
        facts = rows[f"exit {exit_step}"].facts
        if exit_step > 2:
            assert rows[f"exit {exit_step}, known"].facts == facts
        assert facts["macs"] == macs
        assert facts["theoretical"] == dense / macs
        # All calls take the same on this clock.
        assert facts["realised"] == 1.0
        assert facts["share"] == pytest.approx(macs / dense)


def test_mixes_have_the_shares_that_were_asked_for() -> None:
    rows = {row.name: row for row in end_to_end.measure(options(64, exits=[1]))}
    assert set(rows) >= DENSE
    per_exit = random_classifier(BACKBONE).fold().macs_per_exit((112, 112))
    for name, shares in end_to_end.MIXES.items():
        assert sum(shares) == pytest.approx(1.0)
        wanted = sum(share * macs for share, macs in zip(shares, per_exit, strict=True))
        for way in ("step", "stream"):
            row = rows[f"{name}, {way}"]
            assert row.error is None
            assert row.facts["macs"] == pytest.approx(wanted, rel=0.06)  # of 64 images


def test_another_dtype_runs_to_every_exit() -> None:
    """On a CPU, AnchorNet and the images that it sees stay in float32."""
    case = replace(options(2, exits=[1, 5]), dtypes=(torch.bfloat16,))
    rows = list(end_to_end.measure(case))
    assert [row.name for row in rows if row.error] == []
    assert {row.settings["dtype"] for row in rows} == {"bfloat16"}


@pytest.mark.parametrize(
    ("budgets", "mixes"),
    [(["1.92"], {"1.92 G mix, step", "1.92 G mix, stream"}), (["none"], set())],
)
def test_only_the_wanted_mixes(budgets: list[str], mixes: set[str]) -> None:
    rows = end_to_end.measure(options(64, exits=[1], budgets=budgets))
    assert {row.name for row in rows} == DENSE | {"exit 1"} | mixes


def test_statistics_are_those_of_the_activations() -> None:
    torch.manual_seed(0)
    network = build_backbone("resnet18", 10)
    with_statistics(network, 64)
    assert not network.training
    with torch.no_grad():
        values = network.layer4[1].bn2(torch.zeros(1, 512, 2, 2))
    assert values.abs().max() > 1e-3  # the mean is not 0 any more
    assert network.bn1.momentum == 0.1


def test_a_contender_that_fails_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no memory for it")

    monkeypatch.setattr(end_to_end, "_stream", fails)
    case = options(64, exits=[5], budgets=["1.40"])
    rows = {row.name: row for row in end_to_end.measure(case)}
    assert rows["1.40 G mix, stream"].error == "RuntimeError: no memory for it"
    assert rows["1.40 G mix, step"].error is None
    assert rows["exit 5"].time is not None


def test_breakdown_has_every_part_before_and_after() -> None:
    rows = list(breakdown.measure(options(2)))
    parts = {(row.settings["part"], row.name) for row in rows}
    names = {*breakdown.PARTS, breakdown.WHOLE}
    assert parts == {(part, way) for part in names for way in ("before", "after")}
    assert not [row for row in rows if row.error]
    lines = list(breakdown.summarise(rows))
    assert len(lines) == 2
    # 14 calls of 2 images, each of a second.
    assert lines[0].startswith(f"{BACKBONE}, batch 2, size 112, before: 9000.00 ms in parts")
    assert "focus 22.2 %" in lines[0]


def test_before_and_after_give_the_same_answers() -> None:
    model = random_classifier(BACKBONE)
    images = torch.randn(3, 3, 128, 128)
    with torch.no_grad():
        found = model.tuned().classify(images, exit_at=5)
        assert torch.equal(breakdown.plain_algorithm(model, images), found.label)


def test_memory_of_a_process_of_its_own() -> None:
    # Its maps exist whole; those of a MobileNet need not, where its blocks are one operator.
    row = memory.measure_run("dense", {"backbone": "resnet18", "size": 112, "batch": 16}, "cpu")
    assert row.error is None
    # The first feature map has 64 channels at half the size.
    assert row.facts["peak bytes"] > 16 * 64 * 56 * 56 * 4
    # The weights, and the convolutions' in the kernels' order.
    weights = sum(p.numel() for p in build_backbone("resnet18", 1000).parameters()) * 4
    assert weights < row.facts["networks bytes"] < 4 * weights
    assert "MiB at the peak" in memory.describe(row)


def test_memory_of_a_second_run_is_not_hidden_by_what_the_first_one_freed() -> None:
    """The classifier's copies and its first run leave more free than a small batch takes."""
    row = memory.measure_run("system", {"backbone": BACKBONE, "size": 112, "batch": 1}, "cpu")
    assert row.error is None
    assert row.facts["peak bytes"] > 16 * 48 * 48 * 4


def test_a_process_that_fails_is_a_row() -> None:
    row = memory.measure_run("dense", {"backbone": "nonet", "size": 112, "batch": 1}, "cpu")
    assert row.error is not None
    assert "no classification model named 'nonet'" in row.error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--exits", "6"), "--exits 6: there are 5"),
        (("--budgets", "1.5"), "argument --budgets: invalid choice: '1.5'"),
        (("--sizes", "64"), "--sizes 64: a patch needs 95 pixels"),
        (("--backbones", "resnet51"), "no classification model named 'resnet51'"),
    ],
)
def test_bad_arguments(bench: Command, words: tuple[str, ...], message: str) -> None:
    status, _, err = bench("end_to_end", *words)
    assert status != 0
    assert message in err

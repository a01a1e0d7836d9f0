"""How a case is measured, by a clock that the tests turn."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from devices import on_devices
from torch.utils.flop_counter import FlopCounterMode

from anchornet_ext.benchmark import floors, harness
from anchornet_ext.benchmark.floors import (
    CONVOLUTION,
    MOVING,
    PRODUCT,
    PRODUCT_MACS,
    Work,
    mover,
    reader,
)
from anchornet_ext.benchmark.harness import Case, Options, Row, measure_case
from anchornet_ext.evaluation.timing import Timing


class FakeClock:
    """Stands still but for what the contenders take, and a nanosecond at each look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1e-9
        return self.now

    def taking(self, seconds: float) -> Callable[[], None]:
        def call() -> None:
            self.now += seconds

        return call


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def run(clock: FakeClock, contenders: harness.Contenders, **fields: object) -> dict[str, Row]:
    settings = {"operator": "nothing", "batch": 4}
    case = Case("made up", settings, lambda: contenders, batch=4, **fields)
    rows = measure_case(case, Options(repeats=5, clock=clock))
    assert all(row.suite == "made up" and row.settings == settings for row in rows)
    assert [row.name for row in rows] == list(contenders)
    return {row.name: row for row in rows}


@pytest.mark.parametrize("sample", [1e-3, None])
def test_times_are_for_one_image_and_ratios_say_how_many_times_faster(
    clock: FakeClock, sample: float | None
) -> None:
    contenders = {"ours": clock.taking(0.004), "theirs": clock.taking(0.02)}
    rows = run(clock, contenders, over=("theirs",), sample=sample, facts={"macs": 7})
    for name, seconds in (("ours", 0.001), ("theirs", 0.005)):
        assert rows[name].time is not None
        for value in rows[name].time:
            assert value == pytest.approx(seconds, rel=1e-3)
        assert rows[name].error is None
        assert rows[name].facts == {"macs": 7}
    assert rows["ours"].ratios == {"theirs": pytest.approx(5, rel=1e-3)}
    assert rows["theirs"].ratios == {}


def test_a_contender_of_fewer_images_is_compared_by_the_image(clock: FakeClock) -> None:
    contenders = {"ours": clock.taking(0.004), "theirs": clock.taking(0.02)}
    rows = run(clock, contenders, over=("theirs",), fewer={"theirs": 2, "nobody": 1})
    assert rows["theirs"].time is not None
    assert rows["theirs"].time.median == pytest.approx(0.01, rel=1e-3)
    assert rows["ours"].time is not None
    assert rows["ours"].time.median == pytest.approx(0.001, rel=1e-3)
    assert rows["ours"].ratios == {"theirs": pytest.approx(10, rel=1e-3)}


def test_the_spread_is_that_of_the_samples(clock: FakeClock) -> None:
    # Warmed up once, then five samples: quartiles of 1, 2, 3, 4, 5.
    seconds = iter([9.0, 3.0, 1.0, 5.0, 2.0, 4.0])

    def call() -> None:
        clock.now += next(seconds)

    (row,) = run(clock, {"ours": call}, sample=None).values()
    assert row.time == pytest.approx(Timing(3 / 4, 2 / 4, 4 / 4))


@pytest.mark.parametrize("when", [1, 2, 5])
@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory.\nTried"), MemoryError()])
def test_a_failing_contender_has_a_row_and_stops_no_other(
    clock: FakeClock, when: int, error: Exception
) -> None:
    calls = 0

    def failing() -> None:
        nonlocal calls
        calls += 1
        clock.now += 1.0
        if calls >= when:
            raise error

    contenders = {"bad": failing, "good": clock.taking(0.004), "other": clock.taking(0.008)}
    rows = run(clock, contenders, over=("bad", "other"), sample=None)
    assert rows["bad"].time is None
    said = "RuntimeError: CUDA out of memory." if "CUDA" in str(error) else "MemoryError"
    assert rows["bad"].error == said
    assert rows["good"].time == pytest.approx(Timing(*[0.001] * 3), rel=1e-3)
    assert rows["good"].ratios == {"other": pytest.approx(2, rel=1e-3)}


def test_all_contenders_failing_are_all_told(clock: FakeClock) -> None:
    def failing() -> None:
        raise ValueError("no")

    rows = run(clock, {"a": failing, "b": failing}, work=None)
    assert {row.error for row in rows.values()} == {"ValueError: no"}


def test_a_case_that_cannot_be_built_is_one_row(clock: FakeClock) -> None:
    def build() -> harness.Contenders:
        raise RuntimeError("no memory\nfor this")

    (row,) = measure_case(Case("made up", {"batch": 9}, build), Options(clock=clock))
    assert (row.name, row.time) == ("all contenders", None)
    assert row.error == "RuntimeError: no memory"


def test_an_interruption_is_no_failure(clock: FakeClock) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(clock, {"ours": interrupted})


def test_what_the_clock_cannot_tell_is_no_time() -> None:
    case = Case("made up", {}, lambda: {"ours": lambda: None}, sample=None)
    (row,) = measure_case(case, Options(repeats=3, clock=lambda: 1.0))
    assert row.time is None
    assert "clock" in str(row.error)


def test_inputs_are_made_when_measured_from_a_seed_and_let_go(clock: FakeClock) -> None:
    made: list[torch.Tensor] = []
    alive: list[weakref.ref[torch.Tensor]] = []

    def build() -> harness.Contenders:
        images = torch.randn(3)
        made.append(images.clone())
        alive.append(weakref.ref(images))

        def call() -> object:
            assert torch.is_inference_mode_enabled()
            clock.now += 1
            return images.sum()

        return {"ours": call}

    case = Case("made up", {}, build, sample=None)
    assert not made
    for _ in range(2):
        (row,) = measure_case(case, Options(repeats=2, clock=clock))
        assert row.error is None
    assert torch.equal(made[0], made[1])
    gc.collect()
    assert [reference() for reference in alive] == [None, None]


def test_caches_are_flushed_before_every_cold_sample(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(harness, "flush_caches", lambda device: lambda: seen.append("flush"))

    def call() -> None:
        seen.append("call")
        clock.now += 1

    run(clock, {"ours": call}, cold=True)
    assert seen == ["call"] * 2 + ["flush", "call"] * 5


@pytest.mark.usefixtures("one_thread")
def test_the_floor_takes_turns_and_has_a_row() -> None:
    case = Case(
        "made up",
        {"batch": 2},
        lambda: {"ours": lambda: torch.ones(1 << 16).sum()},
        batch=2,
        work=Work(read=1 << 18, macs=10),
        sample=1e-4,
    )
    ours, floor = measure_case(case, Options(repeats=2))
    assert (ours.name, floor.name) == ("ours", "floor")
    assert ours.time is not None
    assert floor.time is not None
    assert ours.ratios == {"floor": pytest.approx(floor.time.median / ours.time.median)}
    assert floor.ratios == {}


def test_the_floor_is_the_longer_of_moving_and_arithmetic() -> None:
    work = Work(read=10, written=10, macs=3 * PRODUCT_MACS[PRODUCT])
    moving, product = Timing(2.0, 1.0, 3.0), Timing(0.5, 0.4, 0.6)
    assert work.floor({MOVING: moving, PRODUCT: product}) == moving
    slower = Timing(1.0, 0.9, 1.1)
    assert work.floor({MOVING: moving, PRODUCT: slower}) == pytest.approx((3.0, 2.7, 3.3))
    # Half a floor would flatter.
    assert work.floor({PRODUCT: product}) is None
    assert work.floor({MOVING: moving}) is None
    assert Work(read=10).floor({MOVING: moving}) == moving
    assert Work().floor({}) is None


def test_arithmetic_is_taken_at_the_faster_rate() -> None:
    work = Work(macs=PRODUCT_MACS[CONVOLUTION])
    slow, fast = Timing(9.0, 8.0, 10.0), Timing(2.0, 1.0, 3.0)
    assert work.floor({PRODUCT: slow, CONVOLUTION: fast}) == fast
    ratio = PRODUCT_MACS[CONVOLUTION] / PRODUCT_MACS[PRODUCT]
    expected = tuple(ratio * seconds for seconds in fast)
    assert work.floor({PRODUCT: fast, CONVOLUTION: slow}) == pytest.approx(expected)


@on_devices
def test_products_do_as_many_multiply_adds_as_they_say(device: str) -> None:
    for name, call in floors.products(device=device).items():
        with FlopCounterMode(display=False) as counter:
            call()
        assert counter.get_total_flops() == 2 * PRODUCT_MACS[name]


def test_without_its_floor_a_case_is_measured_all_the_same(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> object:
        raise MemoryError("no room")

    case = Case("x", {}, lambda: {"ours": clock.taking(1.0)}, work=Work(read=64), sample=None)
    options = Options(repeats=2, clock=clock)
    monkeypatch.setattr(floors, "reader", full)  # when it is made
    first = measure_case(case, options)
    monkeypatch.setattr(floors, "reader", lambda *_: full)  # when it runs
    second = measure_case(case, options)
    for ours, floor in (first, second):
        assert ours.time == pytest.approx((1.0, 1.0, 1.0))
        assert ours.ratios == {}
        assert (floor.name, floor.error) == ("floor", "MemoryError: no room")


def test_no_floor_is_measured_for_nothing(clock: FakeClock) -> None:
    def failing() -> None:
        raise ValueError("no")

    case = Case("x", {}, lambda: {"ours": failing}, work=Work(read=64))
    ours, floor = measure_case(case, Options(clock=clock))
    assert ours.error == "ValueError: no"
    assert floor.time is None
    assert "no contender ran" in str(floor.error)


def test_what_measures_the_memory_moves_what_it_says() -> None:
    assert mover(100, 40)().shape == (40,)
    assert mover(40, 100)().shape == (100,)
    assert mover(40, 100)().dtype == torch.uint8
    assert float(reader(400)()) == 100


@pytest.mark.parametrize(
    ("options", "rounds"),
    [(Options(), 7), (Options(quick=True), 2), (Options(repeats=3, quick=True), 3)],
)
def test_rounds_are_the_users_before_all(options: Options, rounds: int) -> None:
    assert options.rounds(7) == rounds

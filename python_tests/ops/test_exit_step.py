"""exit_step against its specification, on every device there is."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from devices import needs_cuda, on_devices, on_kernels
from hypothesis import given, settings
from torch import Tensor

from anchornet_ext import ops, reference

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
CRITERIA = ["logits", "probabilities"]


def with_strides(x: Tensor, layout: str) -> Tensor:
    """A tensor equal to `x` that is laid out as a caller's slice of something larger may be."""
    if layout == "contiguous":
        return x.clone()
    if layout == "transposed":
        return x.t().contiguous().t()
    if layout == "rows of a wider tensor":
        wide = torch.full(
            (x.shape[0], x.shape[1] + 3), float("nan"), dtype=x.dtype, device=x.device
        )
        wide[:, 1:-2] = x
        return wide[:, 1:-2]
    assert layout == "every other column"
    wide = torch.full((x.shape[0], 2 * x.shape[1]), float("nan"), dtype=x.dtype, device=x.device)
    wide[:, ::2] = x
    return wide[:, ::2]


LAYOUTS = ["contiguous", "transposed", "rows of a wider tensor", "every other column"]


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """For sums that are rounded to `dtype`: one rounding may fall to the other side.

    atol is the rounding of a probability, which is all that is left where a sum cancels.
    """
    return {
        torch.float64: {"rtol": 1e-12, "atol": 1e-15},
        torch.float32: {"rtol": 3e-6, "atol": 5e-7},
        torch.float16: {"rtol": 2e-3, "atol": 1e-6},
        torch.bfloat16: {"rtol": 1.6e-2, "atol": 1e-6},
    }[dtype]


def check_against_reference(
    running: Tensor,
    logits: Tensor,
    active: Tensor,
    threshold: float | Tensor,
    step: int | Tensor,
    criterion: str,
    temperature: float | Tensor = 1.0,
) -> ops.ExitStep:
    """Runs both on copies of `running`; `running` itself ends up as the operator leaves it."""
    expected_running = running.clone()
    before = running.clone()
    got = ops.exit_step(
        running, logits, active, threshold, step=step, criterion=criterion, temperature=temperature
    )
    confidence, prediction, _, _ = reference.exit_step(
        expected_running, logits, active, threshold, step, criterion, temperature
    )

    exact = criterion == "logits"  # one addition and one rounding: no other result is right
    untouched = torch.ones(len(running), dtype=torch.bool, device=running.device)
    untouched[active] = False
    torch.testing.assert_close(
        running[untouched], before[untouched], rtol=0, atol=0, equal_nan=True
    )
    sums_tolerance = {"rtol": 0.0, "atol": 0.0} if exact else tolerance(running.dtype)
    torch.testing.assert_close(running, expected_running, equal_nan=True, **sums_tolerance)

    # Half-precision sums may differ by a rounding, so their confidence may too.
    confidence_dtype = confidence.dtype if exact else running.dtype
    limits = tolerance(confidence_dtype)
    torch.testing.assert_close(got.confidence, confidence, equal_nan=True, **limits)

    assert torch.equal(got.prediction, running[active].argmax(dim=1))
    if exact:
        assert torch.equal(got.prediction, prediction)

    limit = torch.as_tensor(threshold, dtype=confidence.dtype, device=running.device)
    stays = ~(got.confidence > limit)
    undecided = (confidence - limit).abs() <= limits["rtol"] * limit.abs() + limits["atol"]
    assert torch.equal(stays[~undecided], ~(confidence > limit)[~undecided])
    num_active = int(got.num_active)
    assert num_active == int(stays.sum())
    assert got.active[:num_active].tolist() == active[stays].tolist()
    assert got.active[num_active:].tolist() == [-1] * (len(active) - num_active)
    return got


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    """Shapes on both sides of the kernels' vector, warp and block widths."""
    num_rows = draw(st.integers(0, 40))
    num_active = draw(st.integers(0, num_rows))
    return {
        "num_rows": num_rows,
        "num_active": num_active,
        "num_classes": draw(
            st.one_of(st.integers(1, 40), st.sampled_from([64, 100, 127, 1000, 2049, 5000]))
        ),
        "running_dtype": draw(st.sampled_from(DTYPES)),
        "logits_dtype": draw(st.sampled_from(DTYPES)),
        "running_layout": draw(st.sampled_from(LAYOUTS)),
        "logits_layout": draw(st.sampled_from(LAYOUTS)),
        "scale": draw(st.sampled_from([0.1, 1.0, 5.0, 30.0])),
        "ties": draw(st.booleans()),
        "special": draw(st.sampled_from([None, float("nan"), float("inf"), -float("inf")])),
        "criterion": draw(st.sampled_from(CRITERIA)),
        "per_image": draw(st.booleans()),
        "temperature": draw(st.sampled_from([0.05, 0.7, 1.0, 1.0, 3.0, 100.0])),
        "strided_active": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**31 - 1)),
    }


@on_kernels
@settings(max_examples=100, deadline=None)
@given(problem=problems())
def test_equals_the_reference(device: str, problem: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(problem["seed"])

    def draw(rows: int) -> Tensor:
        x = torch.randn(rows, problem["num_classes"], generator=generator) * problem["scale"]
        return x.round() if problem["ties"] else x

    num_rows, num_active = problem["num_rows"], problem["num_active"]
    running = draw(num_rows).to(problem["running_dtype"]).to(device)
    logits = draw(num_active).to(problem["logits_dtype"])
    if problem["special"] is not None and num_active:
        rows = torch.randint(num_active, (2,), generator=generator)
        columns = torch.randint(problem["num_classes"], (2,), generator=generator)
        logits[rows, columns] = problem["special"]
    logits = logits.to(device)
    active = torch.randperm(num_rows, generator=generator)[:num_active].to(device)
    if problem["strided_active"]:
        active = torch.stack([active, active - 1000], dim=1)[:, 0]

    threshold: float | Tensor = float(torch.rand((), generator=generator))
    step: int | Tensor = int(torch.randint(1, 6, (), generator=generator))
    temperature: float | Tensor = problem["temperature"]
    if problem["per_image"]:
        temperature = temperature * (0.5 + torch.rand(num_active, generator=generator)).to(device)
        threshold = torch.rand(num_active, generator=generator).to(device)
        step = torch.randint(1, 6, (num_active,), generator=generator).to(device)
    check_against_reference(
        with_strides(running, problem["running_layout"]),
        with_strides(logits, problem["logits_layout"]),
        active,
        threshold,
        step,
        problem["criterion"],
        temperature,
    )


def samples(device: str) -> list[tuple[Any, ...]]:
    generator = torch.Generator().manual_seed(3)
    running = torch.randn(7, 11, generator=generator).to(device)
    logits = torch.randn(4, 11, generator=generator).to(device)
    active = torch.tensor([5, 0, 3, 6], device=device)
    thresholds = torch.tensor([0.1, 0.2, 0.5, 0.9], device=device)
    steps = torch.tensor([1, 2, 3, 4], device=device)
    temperatures = torch.tensor([0.5, 1.0, 1.5, 2.0], device=device)
    return [
        (running, logits, active, None, 0.3, None, 1, None, 1.0, False),
        (running, logits, active, None, 0.3, None, 2, None, 1.5, True),
        (running, logits.half(), active, thresholds, 0.0, None, 1, temperatures, 1.0, False),
        (running.bfloat16(), logits, active, thresholds, 0.0, steps, 1, temperatures, 1.0, True),
        (
            running.double(),
            logits.t().contiguous().t(),
            active,
            None,
            0.3,
            None,
            1,
            None,
            2.0,
            False,
        ),
        (running, logits[:0], active[:0], None, 0.3, None, 1, temperatures[:0], 1.0, False),
    ]


@on_devices
@pytest.mark.parametrize("index", range(6))
def test_opcheck(device: str, index: int) -> None:
    torch.library.opcheck(torch.ops.anchornet_ext.exit_step.default, samples(device)[index])


@on_devices
@pytest.mark.parametrize("criterion", CRITERIA)
def test_compiles_without_a_break(device: str, criterion: str) -> None:
    def turn(running: Tensor, logits: Tensor, active: Tensor, thresholds: Tensor) -> Any:
        return ops.exit_step(
            running,
            logits * 2,
            active,
            thresholds,
            step=2,
            temperature=1.0 + thresholds,
            criterion=criterion,
        )

    running, logits, active = (t.clone() for t in samples(device)[0][:3])
    thresholds = torch.tensor([0.1, 0.2, 0.5, 0.9], device=device)
    eager_running = running.clone()
    eager = turn(eager_running, logits, active, thresholds)
    compiled = torch.compile(turn, fullgraph=True, backend="aot_eager")(
        running, logits, active, thresholds
    )
    assert isinstance(compiled, ops.ExitStep)
    assert torch.equal(running, eager_running)
    for got, expected in zip(compiled, eager, strict=True):
        assert torch.equal(got, expected)


@on_kernels
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_very_large_logits(device: str, dtype: torch.dtype, criterion: str) -> None:
    """Nothing overflows: the exponent is taken relative to the largest logit."""
    logits = torch.tensor([[1e4, 1e4 - 1, -1e4], [-1e4, -1e4, -1e4]], dtype=dtype, device=device)
    running = torch.zeros(2, 3, dtype=dtype, device=device)
    active = torch.arange(2, device=device)
    got = check_against_reference(running, logits, active, 0.5, 1, criterion)
    expected = torch.tensor([1 / (1 + torch.e**-1), 1 / 3], dtype=dtype, device=device)
    torch.testing.assert_close(got.confidence, expected)
    assert got.active.tolist() == [1, -1]


@on_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_are_not_finite(device: str, dtype: torch.dtype) -> None:
    """As torch.softmax and torch.argmax have it, wherever in the row the value stands."""
    nan, inf = float("nan"), float("inf")
    for position in (0, 1, 16, 31, 32, 69):
        logits = torch.zeros(6, 70, dtype=dtype, device=device)
        logits[0, position] = nan
        logits[1, position:] = nan
        logits[2, position] = inf
        logits[3, :] = -inf
        logits[4, :] = -inf
        logits[4, position] = 2.0
        logits[5, :position] = -inf
        running = torch.zeros_like(logits)
        active = torch.arange(6, device=device)
        got = check_against_reference(running, logits, active, 0.5, 1, "logits")
        assert got.confidence[:4].isnan().all()
        assert got.prediction.tolist() == [position, position, position, 0, position, position]
        assert float(got.confidence[4]) == 1.0
        leavers = {4, 5} if position == 69 else {4}
        assert got.active[: int(got.num_active)].tolist() == sorted(set(range(6)) - leavers)


@on_kernels
def test_one_class_is_always_certain(device: str) -> None:
    running = torch.zeros(3, 1, device=device)
    logits = torch.tensor([[-5.0], [0.0], [7.0]], device=device)
    active = torch.tensor([2, 0, 1], device=device)
    got = check_against_reference(running, logits, active, 0.99, 1, "logits")
    assert got.confidence.tolist() == [1.0, 1.0, 1.0]
    assert int(got.num_active) == 0
    assert running.flatten().tolist() == [0.0, 7.0, -5.0]


@on_kernels
def test_the_threshold_itself_stays(device: str) -> None:
    """Leaving takes confidence > threshold: with two equal classes confidence is exactly 1/2."""
    running = torch.zeros(2, 2, device=device)
    active = torch.arange(2, device=device)
    thresholds = torch.tensor([0.5, 0.4999], device=device)
    got = ops.exit_step(running, torch.zeros_like(running), active, thresholds)
    assert got.active.tolist() == [0, -1]
    nowhere = torch.tensor(float("nan"), device=device)
    got = ops.exit_step(running, torch.zeros_like(running), active, nowhere)
    assert got.active.tolist() == [0, 1]


@on_kernels
def test_half_precision_is_added_in_float32_and_judged_as_stored(device: str) -> None:
    """2048 + 1 is no float16: the stored sum ties with its neighbour and the first class wins."""
    running = torch.tensor([[2048.0, 2048.0]], dtype=torch.float16, device=device)
    logits = torch.tensor([[0.0, 1.0]], device=device)
    active = torch.zeros(1, dtype=torch.int64, device=device)
    got = ops.exit_step(running, logits, active, 0.9)
    assert running.tolist() == [[2048.0, 2048.0]]
    assert got.confidence.dtype == torch.float32
    assert got.confidence.tolist() == [0.5]
    assert got.prediction.tolist() == [0]


@on_kernels
@pytest.mark.parametrize("num_active", [1023, 1024, 1025, 8192, 8193, 20000])
def test_order_is_kept_in_large_batches(device: str, num_active: int) -> None:
    """The compaction on both sides of its tile, against a plain boolean selection."""
    generator = torch.Generator().manual_seed(num_active)
    running = torch.zeros(num_active + 5, 2, device=device)
    logits = torch.randn(num_active, 2, generator=generator).to(device)
    active = torch.randperm(num_active + 5, generator=generator)[:num_active].to(device)
    got = ops.exit_step(running, logits, active, 0.7)
    stays = active[~(got.confidence > 0.7)]
    assert 0 < len(stays) < num_active
    assert int(got.num_active) == len(stays)
    assert torch.equal(got.active[: len(stays)], stays)
    assert bool((got.active[len(stays) :] == -1).all())


@on_devices
def test_threads_do_not_change_the_result(device: str) -> None:
    running = torch.randn(300, 1000, generator=torch.Generator().manual_seed(0)).to(device)
    logits = running.flip(0).contiguous()
    active = torch.arange(300, device=device)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(ops.exit_step(running.clone(), logits, active, 0.02))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*results, strict=True):
        assert torch.equal(one, two)


@on_kernels
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), criterion=st.sampled_from(CRITERIA), data=st.data())
def test_a_temperature_of_one_changes_no_bit(
    device: str, seed: int, criterion: str, data: st.DataObject
) -> None:
    """A number, a scalar tensor and one for each image are the same operation."""
    generator = torch.Generator().manual_seed(seed)
    dtype = data.draw(st.sampled_from(DTYPES))
    classes = data.draw(st.sampled_from([1, 5, 100, 1000, 5000]))
    running = (torch.randn(6, classes, generator=generator) * 5).to(dtype).to(device)
    logits = (torch.randn(4, classes, generator=generator) * 5).to(dtype).to(device)
    active = torch.tensor([4, 0, 5, 2], device=device)
    sums, results = [], []
    for options in (
        {},
        {"temperature": 1.0},
        {"temperature": torch.tensor(1.0, device=device)},
        {"temperature": torch.ones(4, dtype=torch.float64, device=device)},
    ):
        total = running.clone()
        results.append(ops.exit_step(total, logits, active, 0.5, criterion=criterion, **options))
        sums.append(total)
    for total, result in zip(sums[1:], results[1:], strict=True):
        assert torch.equal(total, sums[0])
        for got, expected in zip(result, results[0], strict=True):
            assert torch.equal(got, expected)


@on_kernels
def test_temperature_changes_how_sure_and_not_of_what(device: str) -> None:
    logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]], device=device)
    running = torch.zeros(3, 2, device=device)
    temperatures = torch.tensor([1.0, 2.0, 0.5], device=device)
    got = ops.exit_step(
        running, logits, torch.arange(3, device=device), 0.9, temperature=temperatures
    )
    expected = torch.sigmoid(torch.tensor([2.0, 1.0, 4.0], device=device))
    torch.testing.assert_close(got.confidence, expected)
    assert got.prediction.tolist() == [0, 0, 1]
    assert got.active.tolist() == [0, 1, -1]
    assert torch.equal(running, logits)  # the sum is not divided


@on_kernels
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_extreme_temperatures(device: str, dtype: torch.dtype, criterion: str) -> None:
    """Neither overflows: certain of the largest logit, or certain of nothing."""
    logits = torch.tensor([[3e4, -3e4, 1.0, 0.0]], dtype=dtype, device=device)
    active = torch.zeros(1, dtype=torch.int64, device=device)
    for temperature, confidence in ((torch.finfo(dtype).tiny, 1.0), (torch.finfo(dtype).max, 0.25)):
        got = ops.exit_step(
            torch.zeros_like(logits),
            logits,
            active,
            0.5,
            temperature=temperature,
            criterion=criterion,
        )
        assert got.confidence.tolist() == [confidence]
        assert got.prediction.tolist() == [0]


def test_logits_that_require_a_gradient_give_results_that_do_not() -> None:
    logits = torch.zeros(1, 3, requires_grad=True)
    running = torch.zeros(1, 3)
    got = ops.exit_step(running, logits, torch.tensor([0]), 0.5)
    assert not got.confidence.requires_grad
    assert not running.requires_grad
    with pytest.raises(ValueError, match="running requires a gradient"):
        ops.exit_step(running.requires_grad_(), logits, torch.tensor([0]), 0.5)


GOOD: dict[str, Any] = {
    "running": torch.zeros(4, 3),
    "logits": torch.zeros(2, 3),
    "active": torch.tensor([0, 2]),
    "threshold": 0.5,
}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"running": torch.zeros(4, 3, dtype=torch.int32)}, TypeError, "running.*torch.int32"),
        ({"running": torch.zeros(4)}, ValueError, r"running.*\(4,\)"),
        ({"running": torch.zeros(4, 0), "logits": torch.zeros(2, 0)}, ValueError, r"\(4, 0\)"),
        ({"running": torch.zeros(1, 3).expand(4, 3)}, ValueError, "expanded.*size 4"),
        ({"running": torch.zeros(4, 3, device="meta")}, ValueError, "logits is on cpu.*meta"),
        ({"logits": torch.zeros(2, 3, dtype=torch.int64)}, TypeError, "logits.*torch.int64"),
        ({"logits": torch.zeros(3, 3)}, ValueError, r"logits.*\(2, 3\), got \(3, 3\)"),
        ({"logits": torch.zeros(2, 4)}, ValueError, r"logits.*\(2, 3\), got \(2, 4\)"),
        ({"active": torch.tensor([0, 2], dtype=torch.int32)}, TypeError, "active.*torch.int32"),
        ({"active": torch.tensor([[0, 2]])}, ValueError, r"active.*\(1, 2\)"),
        ({"threshold": torch.tensor([0.5])}, ValueError, r"threshold.*\(2,\), got \(1,\)"),
        ({"threshold": torch.tensor([1, 1])}, TypeError, "threshold.*torch.int64"),
        ({"step": 0}, ValueError, "step.*0"),
        ({"step": 1.5}, TypeError, "step.*1.5"),
        ({"step": torch.tensor([1.0, 2.0])}, TypeError, "step.*torch.float32"),
        ({"step": torch.tensor([1, 2, 3])}, ValueError, r"step.*\(3,\)"),
        ({"criterion": "entropy"}, ValueError, "criterion.*'entropy'"),
        ({"temperature": 0.0}, ValueError, "temperature must be positive and finite, got 0.0"),
        ({"temperature": -1}, ValueError, "temperature must be positive and finite, got -1"),
        ({"temperature": float("nan")}, ValueError, "temperature.*nan"),
        ({"temperature": float("inf")}, ValueError, "temperature.*inf"),
        ({"temperature": 1e39}, ValueError, r"temperature.*1e\+39"),
        ({"temperature": 1e-39}, ValueError, "temperature.*1e-39"),
        ({"temperature": torch.tensor([1, 1])}, TypeError, "temperature.*torch.int64"),
        ({"temperature": torch.ones(3)}, ValueError, r"temperature.*\(2,\), got \(3,\)"),
        ({"temperature": torch.tensor(0.0)}, ValueError, "temperature.*got 0.0"),
        ({"temperature": torch.tensor([1.0, -2.0])}, ValueError, "temperature.*got -2.0"),
    ],
)
def test_wrapper_names_what_is_wrong(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        ops.exit_step(**{**GOOD, **change})


@on_kernels
@pytest.mark.parametrize(
    ("active", "step", "message"),
    [
        ([0, 4], 1, "active has 4, but running has 4 rows"),
        ([0, -1], 1, "active has -1"),
        ([3, 3], 1, "row 3 more than once"),
        ([0, 1], [1, 0], "step must be at least 1, got 0"),
    ],
)
def test_validate_checks_values_on_any_device(
    device: str, active: list[int], step: int | list[int], message: str
) -> None:
    running = torch.zeros(4, 3, device=device)
    with pytest.raises(ValueError, match=message):
        ops.exit_step(
            running,
            torch.ones(2, 3, device=device),
            torch.tensor(active, device=device),
            0.5,
            step=torch.tensor(step, device=device) if isinstance(step, list) else step,
            criterion="probabilities",
            validate=True,
        )
    with pytest.raises(ValueError, match="temperature must be positive and finite, got nan"):
        ops.exit_step(
            running,
            torch.ones(2, 3, device=device),
            torch.tensor([0, 1], device=device),
            0.5,
            temperature=torch.tensor([1.0, float("nan")], device=device),
            validate=True,
        )
    assert not running.any()


def test_validate_lets_good_values_pass() -> None:
    got = ops.exit_step(**{**GOOD, "running": torch.zeros(4, 3)}, validate=True)
    assert got.active.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("active", "steps", "wrapper_message", "kernel_message"),
    [
        ([0, 4], [1, 1], "active has 4, but running has 4 rows", r"active\[1\] is 4, but running"),
        ([-1, 0], [1, 1], "active has -1, but", r"active\[0\] is -1, but running has 4 rows"),
        ([2**40, 0], [1, 1], "active has 1099511627776", r"active\[0\] is 1099511627776"),
        ([3, 3], [1, 1], "row 3 more than once", r"active\[1\] is 3, which is there already"),
        ([0, 1], [1, -2], "at least 1, got -2", r"steps\[1\] is -2"),
    ],
)
def test_cpu_checks_values_before_it_writes(
    active: list[int], steps: list[int], wrapper_message: str, kernel_message: str
) -> None:
    running = torch.zeros(4, 3)
    logits, rows, counts = torch.ones(2, 3), torch.tensor(active), torch.tensor(steps)
    with pytest.raises(ValueError, match=wrapper_message):
        ops.exit_step(running, logits, rows, 0.5, step=counts, criterion="probabilities")
    with pytest.raises(RuntimeError, match=kernel_message):
        torch.ops.anchornet_ext.exit_step(
            running, logits, rows, None, 0.5, counts, 1, None, 1.0, True
        )
    assert not running.any()


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-40, float("inf"), float("nan")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cpu_checks_temperatures_before_it_writes(value: float, dtype: torch.dtype) -> None:
    running = torch.zeros(4, 3, dtype=dtype)
    temperatures = torch.tensor([1.0, value], dtype=dtype)
    arguments = (running, torch.ones(2, 3), torch.tensor([0, 1]), None, 0.5, None, 1)
    if value == 1e-40 and dtype == torch.float64:
        torch.ops.anchornet_ext.exit_step(*arguments, temperatures, 1.0, False)
        return
    with pytest.raises(RuntimeError, match=r"temperatures\[1\] is .*positive and finite"):
        torch.ops.anchornet_ext.exit_step(*arguments, temperatures, 1.0, False)
    with pytest.raises(ValueError, match="temperature must be positive and finite"):
        ops.exit_step(*arguments[:3], 0.5, temperature=temperatures)
    assert not running.any()


@on_kernels
@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.zeros(4), r"running must be \(N, n\).*\(4\)"),
        (0, torch.zeros(4, 3, dtype=torch.int32), "running must be float32.*Int"),
        (0, torch.zeros(4, 1).expand(4, 3), "expanded tensor: dimension 1 has size 3"),
        (1, torch.zeros(2, 4), r"logits must be \(A, n\) = \(2, 3\), got \(2, 4\)"),
        (1, torch.zeros(2, 3, dtype=torch.int64), "logits must be float32.*Long"),
        (2, torch.zeros(2, dtype=torch.int32), "active must be int64, got Int"),
        (2, torch.zeros(1, 2, dtype=torch.int64), r"active must be \(A\), got \(1, 2\)"),
        (3, torch.zeros(3), r"thresholds must be \(A\) = \(2\), got \(3\)"),
        (3, torch.zeros(2, dtype=torch.float64), "thresholds must be Float, got Double"),
        (5, torch.zeros(3, dtype=torch.int64), r"steps must be \(A\) = \(2\), got \(3\)"),
        (5, torch.zeros(2), "steps must be Long, got Float"),
        (6, 0, "step must be at least 1, got 0"),
        (7, torch.zeros(3), r"temperatures must be \(A\) = \(2\), got \(3\)"),
        (7, torch.zeros(2, dtype=torch.float64), "temperatures must be Float, got Double"),
        (8, 0.0, "temperature must be positive and finite, got 0"),
        (8, 1e300, r"temperature must be positive and finite, got 1e\+300"),
    ],
)
def test_kernels_check_without_the_wrapper(
    device: str, position: int, value: Any, message: str
) -> None:
    arguments: list[Any] = [
        torch.zeros(4, 3, device=device),
        torch.zeros(2, 3, device=device),
        torch.tensor([0, 2], device=device),
        None,
        0.5,
        None,
        1,
        None,
        1.0,
        True,
    ]
    if isinstance(value, Tensor):
        # an expanded tensor stays expanded on its way to the device
        value = value[:, :1].to(device).expand(4, 3) if 0 in value.stride() else value.to(device)
    arguments[position] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.anchornet_ext.exit_step(*arguments)


@needs_cuda
class TestCuda:
    def test_rows_out_of_range_drop_out_and_nothing_else_changes(self) -> None:
        running = torch.zeros(4, 300, device="cuda")
        active = torch.tensor([1, -1, 4, 3, 2**40], device="cuda")
        got = ops.exit_step(running, torch.ones(5, 300, device="cuda"), active, 0.5)
        assert running.sum(dim=1).tolist() == [0.0, 300.0, 0.0, 300.0]
        assert got.active.tolist() == [1, 3, -1, -1, -1]
        assert int(got.num_active) == 2
        assert got.prediction.tolist() == [0, -1, -1, 0, -1]
        assert got.confidence.isnan().tolist() == [False, True, True, False, True]

    @pytest.mark.parametrize("criterion", CRITERIA)
    @pytest.mark.parametrize("classes", [1, 3, 300, 5000])
    def test_a_wrong_temperature_never_leaves(self, criterion: str, classes: int) -> None:
        wrong = [0.0, -1.0, float("nan"), float("inf"), 1e-40]
        got = ops.exit_step(
            torch.zeros(6, classes, device="cuda"),
            torch.zeros(6, classes, device="cuda"),
            torch.arange(6, device="cuda"),
            -1.0,
            temperature=torch.tensor([*wrong, 1.0], device="cuda"),
            criterion=criterion,
        )
        assert got.confidence.isnan().tolist() == [True] * 5 + [False]
        assert got.active.tolist() == [0, 1, 2, 3, 4, -1]

    def test_the_compacted_set_feeds_the_next_turn_without_a_copy_to_the_host(self) -> None:
        running = torch.zeros(4, 3, device="cuda")
        logits = torch.tensor([[9.0, 0, 0], [0, 0, 0], [9, 0, 0], [0, 1, 0]], device="cuda")
        first = ops.exit_step(running, logits, torch.arange(4, device="cuda"), 0.9)
        second = ops.exit_step(running, logits, first.active, 0.9)
        assert first.active.tolist() == [1, 3, -1, -1]
        assert running[1].tolist() == [9.0, 0, 0]
        assert running[3].tolist() == [0.0, 1.0, 0.0]
        assert second.active.tolist() == [3, -1, -1, -1]

    def test_does_not_wait_for_the_device(self) -> None:
        arguments = samples("cuda")[0]
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            ops.exit_step(*arguments[:3], 0.3)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    def test_runs_in_a_cuda_graph(self) -> None:
        running, logits, active = (t.clone() for t in samples("cuda")[0][:3])
        expected_running = running.clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = ops.exit_step(running, logits, active, 0.3)
        graph.replay()
        expected = ops.exit_step(expected_running, logits, active, 0.3)
        assert torch.equal(running, expected_running)
        for one, two in zip(got, expected, strict=True):
            assert torch.equal(one, two)

    def test_a_million_rows(self) -> None:
        generator = torch.Generator(device="cuda").manual_seed(0)
        logits = torch.randn(1_000_000, 4, generator=generator, device="cuda")
        active = torch.arange(1_000_000, device="cuda")
        got = ops.exit_step(torch.zeros_like(logits), logits, active, 0.5)
        stays = active[~(got.confidence > 0.5)]
        assert int(got.num_active) == len(stays)
        assert torch.equal(got.active[: len(stays)], stays)
        assert bool((got.active[len(stays) :] == -1).all())

    def test_more_than_two_to_the_31_elements(self) -> None:
        if torch.cuda.get_device_properties(0).total_memory < 2 * 2**31 * 2 * 1.2:
            pytest.skip("needs about 10 GB of device memory")
        running = torch.zeros(2**17 + 3, 2**14 + 1, dtype=torch.float16, device="cuda")
        logits = torch.ones(1, 2**14 + 1, device="cuda")
        active = torch.tensor([2**17 + 2], device="cuda")
        ops.exit_step(running, logits, active, 0.5)
        assert float(running[-1].sum(dtype=torch.float32)) == 2**14 + 1
        assert not running[0].any()

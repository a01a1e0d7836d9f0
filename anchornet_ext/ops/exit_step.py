"""One turn of the early-exit loop for a whole batch (Algorithm 1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import _extension

_FLOATING = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_CRITERIA = ("logits", "probabilities")


class ExitStep(NamedTuple):
    """What `exit_step` returns; A is the number of images that were active."""

    confidence: Tensor
    """(A) float32, or float64 if `running` is: aligned with the `active` that was passed in."""
    prediction: Tensor
    """(A) int64: the class with the largest sum, the first of equal ones; NaN counts as largest."""
    active: Tensor
    """(A) int64: the rows that stay, in their order, and -1 behind them."""
    num_active: Tensor
    """() int64, on the device: how many rows stay."""


def exit_step(
    running: Tensor,
    logits: Tensor,
    active: Tensor,
    threshold: float | Tensor,
    *,
    step: int | Tensor = 1,
    temperature: float | Tensor = 1.0,
    criterion: str = "logits",
    validate: bool = False,
) -> ExitStep:
    """Adds the active images' new logits to their running sums and decides who leaves.

    For every image i of `active`, with z_i its row of `running` after the addition (Algorithm 1):

    - criterion "logits": z_i += logits_i; confidence = max softmax(z_i / temperature), as in the
      authors' code for a temperature of 1. The sum itself is not divided.
    - criterion "probabilities": z_i += softmax(logits_i / temperature); confidence =
      max(z_i) / step, the mean of the probabilities, as in the paper's text.

    An image leaves when confidence > threshold. A NaN confidence or threshold never leaves. Nothing
    waits for the GPU: the number of images that stay is a tensor. Not differentiable: the results
    carry no gradient. Under autocast nothing is cast: `running` and `logits` may differ in dtype.

    Args:
        running: (N, n) sums of logits or probabilities, float32, float64, float16 or bfloat16, of
            any strides. Updated in place at the rows `active`; half precision is added up in
            float32 and rounded once.
        logits: (A, n) of any of these dtypes and any strides, not sharing memory with `running`.
            Row j belongs to image active[j].
        active: (A) int64 rows of `running`, each at most once.
        threshold: one confidence for all images or a tensor () or (A), aligned with `active`.
        step: how many inputs the images have seen with this one, at least 1: an int or an integer
            tensor () or (A). Used by criterion "probabilities" only.
        temperature: above 1 makes the images less sure, below 1 surer; positive and finite: a float
            or a tensor () or (A), used in the type of the confidence. 1 changes no bit.
        criterion: "logits" or "probabilities".
        validate: check the values of `active`, `step` and `temperature` on CUDA too, which waits
            for the GPU. The CPU kernel always checks them, before it writes anything. Unchecked on
            CUDA, rows out of range are left alone and drop out (confidence NaN, prediction -1), a
            step below 1 gives confidence NaN, a wrong temperature does too (and under
            "probabilities" a sum of NaN), and which sum a repeated row ends up with is undefined.

    Returns:
        ExitStep: confidence (A), prediction (A), active (A) and num_active ().

    Raises:
        TypeError: a dtype that is not listed, or step not an integer.
        ValueError: shapes that do not fit, an unknown criterion, tensors on several devices,
            `running` expanded or requiring a gradient, a step below 1, a temperature that is not
            positive and finite (tensors of them on the CPU or with `validate`); on the CPU or with
            `validate`, rows out of range or repeated. Nothing has been written then.
        ImportError: the native library, or its CUDA half for CUDA tensors, does not load.
    """
    if criterion in _CRITERIA and not validate and _is_plain(running, logits, active):
        one_threshold = type(threshold) is float
        one_step = type(step) is int
        one_temperature = type(temperature) is float
        if (
            (one_threshold or _is_constant(threshold))
            and (step >= 1 if one_step else _is_constant(step))
            and (one_temperature or _is_constant(temperature))
        ):
            try:
                return ExitStep(
                    *torch.ops.anchornet_ext.exit_step.default(
                        running,
                        logits,
                        active,
                        None if one_threshold else threshold,
                        threshold if one_threshold else 1.0,
                        None if one_step else step,
                        step if one_step else 1,
                        None if one_temperature else temperature,
                        temperature if one_temperature else 1.0,
                        criterion == "probabilities",
                    )
                )
            except RuntimeError:
                pass  # the kernel has written nothing; what follows finds out the reason
    _check(running, logits, active, criterion)
    thresholds, fixed_threshold = _per_image_float("threshold", threshold, running, active)
    steps, fixed_step = _per_image_step(step, running, active)
    temperatures, fixed_temperature = _per_image_float("temperature", temperature, running, active)
    if temperatures is None and fixed_temperature != 1.0:
        _check_temperature(fixed_temperature, torch.promote_types(running.dtype, torch.float32))
    if validate:
        _check_values(active, running.shape[0], steps, temperatures)
    _extension.require_device(running.device)
    arguments = (
        running,
        logits.detach() if logits.requires_grad else logits,
        active,
        thresholds,
        fixed_threshold,
        steps,
        fixed_step,
        temperatures,
        fixed_temperature,
        criterion == "probabilities",
    )
    if running.is_cuda or torch.compiler.is_compiling():
        return ExitStep(*torch.ops.anchornet_ext.exit_step(*arguments))
    try:
        return ExitStep(*torch.ops.anchornet_ext.exit_step(*arguments))
    except RuntimeError:
        # The kernel has found a bad value and written nothing: say which as a ValueError.
        _check_values(active, running.shape[0], steps, temperatures)
        raise


def _is_plain(running: Tensor, logits: Tensor, active: Tensor) -> bool:
    """Whether the kernel can be left to check the tensors, which it does in a fraction of the time.

    After a network's pass, the checks below take longer than the kernel does for one image.
    """
    return (
        type(running) is Tensor
        and type(logits) is Tensor
        and type(active) is Tensor
        and running.is_cpu
        and not running.requires_grad
        and not logits.requires_grad
        and _extension.available()
        and not torch.compiler.is_compiling()
    )


def _is_constant(value: object) -> bool:
    """Whether it is a tensor without a gradient, which the kernel can check by itself."""
    return type(value) is Tensor and not value.requires_grad


def _check(running: Tensor, logits: Tensor, active: Tensor, criterion: str) -> None:
    if criterion not in _CRITERIA:
        raise ValueError(f"criterion must be 'logits' or 'probabilities', got {criterion!r}")
    for name, tensor in (("running", running), ("logits", logits)):
        if tensor.dtype not in _FLOATING:
            raise TypeError(
                f"{name} must be float32, float64, float16 or bfloat16, got {tensor.dtype}"
            )
    if active.dtype != torch.int64:
        raise TypeError(f"active must be int64, got {active.dtype}")
    if running.dim() != 2 or running.shape[1] < 1:
        raise ValueError(f"running must be (N, n) with n >= 1, got {tuple(running.shape)}")
    if active.dim() != 1:
        raise ValueError(f"active must be (A), got {tuple(active.shape)}")
    expected = (active.shape[0], running.shape[1])
    if logits.dim() != 2 or logits.shape[0] != expected[0] or logits.shape[1] != expected[1]:
        raise ValueError(f"logits must be (A, n) = {expected}, got {tuple(logits.shape)}")
    for name, tensor in (("logits", logits), ("active", active)):
        if tensor.device != running.device:
            raise ValueError(f"{name} is on {tensor.device}, but running is on {running.device}")
    if running.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "running requires a gradient, but exit_step writes it in place and is not "
            "differentiable: pass running.detach() or use torch.no_grad()"
        )
    for d in range(2):
        if running.stride(d) == 0 and running.shape[d] > 1:
            raise ValueError(
                "running is written in place and must not be an expanded tensor: dimension "
                f"{d} has size {running.shape[d]} and stride 0"
            )


def _per_image(name: str, value: Tensor, running: Tensor, active: Tensor) -> Tensor:
    if value.dim() > 1 or (value.dim() == 1 and value.shape[0] != active.shape[0]):
        raise ValueError(
            f"{name} must be () or (A) = ({active.shape[0]},), got {tuple(value.shape)}"
        )
    if value.device != running.device:
        raise ValueError(f"{name} is on {value.device}, but running is on {running.device}")
    return value.detach().expand(active.shape[0]) if value.dim() == 0 else value.detach()


def _per_image_float(
    name: str, value: float | Tensor, running: Tensor, active: Tensor
) -> tuple[Tensor | None, float]:
    """The tensor, or the number that holds for all (1 beside a tensor, where nobody reads it)."""
    if not isinstance(value, Tensor):
        return None, float(value)
    if not value.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {value.dtype}")
    values = _per_image(name, value, running, active)
    return values.to(torch.promote_types(running.dtype, torch.float32)), 1.0


def _per_image_step(
    step: int | Tensor, running: Tensor, active: Tensor
) -> tuple[Tensor | None, int]:
    if isinstance(step, Tensor):
        if step.is_floating_point() or step.is_complex() or step.dtype == torch.bool:
            raise TypeError(f"step must be an integer tensor, got {step.dtype}")
        return _per_image("step", step, running, active).to(torch.int64), 1
    if isinstance(step, bool) or not isinstance(step, int | torch.SymInt):
        raise TypeError(f"step must be an integer or an integer tensor, got {step!r}")
    if step < 1:
        raise ValueError(f"step must be at least 1, got {step}")
    return None, step


def _check_temperature(temperature: float, dtype: torch.dtype) -> None:
    limits = torch.finfo(dtype)  # subnormal numbers have no finite inverse
    if not limits.tiny <= temperature <= limits.max:
        raise ValueError(f"temperature must be positive and finite, got {temperature}")


def _check_values(
    active: Tensor, num_rows: int, steps: Tensor | None, temperatures: Tensor | None
) -> None:
    if active.numel() == 0:
        return
    outside = active[(active < 0) | (active >= num_rows)]
    if outside.numel():
        raise ValueError(f"active has {int(outside[0])}, but running has {num_rows} rows")
    rows = active.sort().values
    repeated = rows[1:][rows[1:] == rows[:-1]]
    if repeated.numel():
        raise ValueError(f"active has row {int(repeated[0])} more than once")
    if steps is not None and bool((steps < 1).any()):
        raise ValueError(f"step must be at least 1, got {int(steps.min())}")
    if temperatures is not None:
        limits = torch.finfo(temperatures.dtype)
        wrong = ~((temperatures >= limits.tiny) & (temperatures <= limits.max))
        if bool(wrong.any()):
            _check_temperature(float(temperatures[wrong][0]), temperatures.dtype)


if _extension.available():

    @torch.library.register_fake("anchornet_ext::exit_step")  # type: ignore[untyped-decorator]
    def _fake(
        running: Tensor,
        logits: Tensor,
        active: Tensor,
        thresholds: Tensor | None,
        threshold: float,
        steps: Tensor | None,
        step: int,
        temperatures: Tensor | None,
        temperature: float,
        mean_probabilities: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        accumulate = torch.promote_types(running.dtype, torch.float32)
        size = active.shape[0]
        return (
            running.new_empty((size,), dtype=accumulate),
            active.new_empty((size,)),
            active.new_empty((size,)),
            active.new_empty(()),
        )

"""What the operators' suite compares computes the same, or its ratios would mean nothing."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import pytest
import torch
from devices import on_devices
from torch import Tensor

from anchornet_ext.benchmark import localisation, operators
from anchornet_ext.benchmark.harness import Case, Options
from anchornet_ext.benchmark.operators.setting import OURS
from anchornet_ext.ops import ExitStep, PatchSelection

pytestmark = pytest.mark.usefixtures("one_thread")

#: Of what the usual code computes otherwise: half precision is summed in half precision there.
TOLERANCE = {"float32": 2e-4, "uint8": 2e-4, "float16": 2e-2, "bfloat16": 1.5e-1}

CPU_ONLY = {"inverted_residuals", "convolve_maps", "run_map_program"}


def cases(device: str, sizes: tuple[int, ...] | None = None, **arguments: Any) -> list[Case]:
    names = argparse.Namespace(**arguments)
    options = Options(torch.device(device), sizes=sizes, quick=True, arguments=names)
    return list(operators.cases(options))


def results(found: Any) -> Any:
    """What can be compared: tensors."""
    if isinstance(found, PatchSelection):
        return [found.index]
    if isinstance(found, ExitStep):
        return [found.confidence, found.prediction, found.active[: int(found.num_active)]]
    return list(found) if isinstance(found, tuple) else [found]


@on_devices
@pytest.mark.parametrize("operator", operators.CASES)
def test_contenders_agree(operator: str, device: str) -> None:
    found = cases(device, operators=[operator])
    assert bool(found) == (device == "cpu" or operator not in CPU_ONLY)
    for case in found:
        torch.manual_seed(0)
        with case.mode():
            outputs = {name: results(call()) for name, call in case.build().items()}
        expected = outputs.pop(OURS)
        # Nothing is set in relation to what does not exist, and everything that exists is.
        assert set(outputs) <= set(case.over)
        assert set(case.over) - set(outputs) <= {"all classes"}
        outputs.pop("batched_nms", None)  # another rule at the threshold: see below
        for name, output in outputs.items():
            for ours, theirs in zip(expected, output, strict=False):
                assert isinstance(ours, Tensor)
                tolerance = TOLERANCE[str(case.settings["dtype"])]
                assert ours.shape == theirs.shape, (name, case.settings)
                torch.testing.assert_close(
                    ours.double(),
                    theirs.double(),
                    rtol=tolerance,
                    atol=tolerance * max(1.0, float(theirs.double().abs().max())),
                    msg=lambda text, name=name, case=case: f"{name}, {case.settings}: {text}",
                )


def test_batched_nms_chooses_as_we_do_but_for_the_threshold() -> None:
    # Large enough for four patches apart; NMS cannot fill up.
    (case,) = cases("cpu", (224,), operators=["select_patches"])
    torch.manual_seed(0)
    contenders = case.build()
    ours: Any = contenders[OURS]()
    theirs: Any = contenders["batched_nms"]()
    assert len(theirs) == len(ours.index) > 0
    for chosen, qualified, others in zip(ours.index, ours.num_qualified, theirs, strict=True):
        count = min(int(qualified), len(others))
        assert count > 1
        assert chosen[:count].tolist() == others[:count].tolist()


def test_no_two_cases_have_one_identity() -> None:
    usual = list(operators.cases(Options()))
    keys = {tuple(sorted(case.settings.items())) for case in usual}
    assert len(keys) == len(usual)


def test_options_choose() -> None:
    def settings_of(name: str, **fields: Any) -> set[Any]:
        wanted = fields.pop("operators", list(operators.CASES))
        caches = fields.pop("caches", None)
        options = Options(**fields, arguments=argparse.Namespace(operators=wanted, caches=caches))
        return {case.settings.get(name) for case in operators.cases(options)}

    assert settings_of("operator", operators=["exit_step"]) == {"exit_step"}
    assert settings_of("batch", batches=(3, 5)) == {3, 5}
    assert settings_of("size", sizes=(128, 160)) == {128, 160, None}  # None: exit_step has none
    assert settings_of("dtype", dtypes=(torch.uint8,)) == {"uint8"}
    assert settings_of("caches", caches=["cold"]) == {"cold"}
    assert settings_of("batch", batches=(3, 5), caches=["cold"]) == {5}


def test_the_work_is_what_the_contenders_do() -> None:
    """The floors' bytes, from the tensors themselves."""
    for case in cases("cpu", operators=["gather_patches", "resize_images", "scatter_patches"]):
        with torch.inference_mode():
            result: Any = case.build()[OURS]()
        assert case.work is not None
        assert case.work.written == result.numel() * result.element_size()


@on_devices
@pytest.mark.parametrize("size", [128, 224])  # with filling up and without
@pytest.mark.parametrize("part", localisation.parts(128))
def test_the_parts_of_localisation_agree(part: str, size: int, device: str) -> None:
    torch.manual_seed(0)
    with torch.inference_mode():
        inputs = localisation.Inputs(2, size, torch.device(device))
        contenders = localisation.parts(size)[part].contenders(inputs)
        outputs: dict[str, Any] = {name: call() for name, call in contenders.items()}
    plain = outputs.pop("plain")
    assert outputs
    for output in outputs.values():
        compare: Callable[[Any, Any], None] = AGREE[part]
        compare(plain, output)


def _close(plain: Tensor, ours: Tensor) -> None:
    torch.testing.assert_close(plain, ours, rtol=1e-3, atol=1e-4)


def _maps(plain: Tensor, ours: Tensor) -> None:
    """Equal up to a constant per image (`localise` says which)."""
    _close(plain - plain.mean(dim=(1, 2), keepdim=True), ours - ours.mean(dim=(1, 2), keepdim=True))


AGREE: dict[str, Callable[[Any, Any], None]] = {
    "whole": _close,
    "network": lambda plain, ours: _close(plain[1], ours),
    "map": _maps,
    "selection": lambda plain, ours: _cells(plain, ours),
    "gather": _close,
}


def _cells(plain: list[list[tuple[int, int]]], ours: PatchSelection) -> None:
    assert (localisation.STRIDE * torch.tensor(plain)).tolist() == ours.top_left.tolist()

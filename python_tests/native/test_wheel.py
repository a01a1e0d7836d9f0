"""The judgement of check_wheel.py, which builds a wheel and is run outside of pytest."""

from __future__ import annotations

import sys

from check_wheel import wheel_problems

TAG = sys.implementation.cache_tag
GOOD = [
    f"anchornet_ext/_C.{TAG}-x86_64-linux-gnu.so",
    "anchornet_ext/__init__.py",
    "anchornet_ext/ops/exit_step.py",
    "anchornet_ext/py.typed",
    "anchornet_ext-0.1.0.dist-info/RECORD",
]


def test_a_good_wheel_has_no_problems() -> None:
    assert wheel_problems(GOOD, with_cuda=False) == []
    assert wheel_problems([*GOOD, "anchornet_ext/_cuda.so"], with_cuda=True) == []


def test_each_problem_is_named() -> None:
    assert wheel_problems(GOOD[1:], with_cuda=False)[0].startswith("expected one anchornet_ext/_C.")
    assert wheel_problems(GOOD, with_cuda=True) == ["anchornet_ext/_cuda.so is missing"]
    (problem,) = wheel_problems([*GOOD, "anchornet_ext/_cuda.so"], with_cuda=False)
    assert problem.endswith("is there, but the build is without CUDA")
    without_marker = [name for name in GOOD if not name.endswith("py.typed")]
    assert wheel_problems(without_marker, False) == ["anchornet_ext/py.typed is missing"]
    (problem,) = wheel_problems([*GOOD, "python_tests/test_doctor.py"], with_cuda=False)
    assert problem == "python_tests/test_doctor.py does not belong in the wheel"
    (problem,) = wheel_problems([*GOOD, "anchornet_ext/kernel.cu"], with_cuda=False)
    assert problem == "anchornet_ext/kernel.cu is no part of an installed package"

"""The kernels that this processor would not choose, in processes that are told to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import instruction_set_cases as cases
import torch
from mbconv_cases import chains

#: What a limit allows at most.
LIMITS = {"default": "any", "avx2": "x86-64-v3", "avx512": "x86-64-v4"}


def test_every_instruction_set_gives_the_same(tmp_path: Path) -> None:
    """On a processor without AVX-512 those that there are: a limit is all that can be asked for."""
    numbers, of_blocks = cases.given(), chains()
    given = tmp_path / "given.pt"
    torch.save((numbers, of_blocks), given)
    processes = [
        subprocess.Popen(
            [sys.executable, cases.__file__, given, tmp_path / limit],
            env={**os.environ, "ATEN_CPU_CAPABILITY": limit},
        )
        for limit in LIMITS
    ]
    expected, products = cases.exact(numbers), dict(cases.products(numbers, of_blocks))
    for process in processes:
        assert process.wait() == 0
    for limit, best in LIMITS.items():
        chosen, exact, others = torch.load(tmp_path / limit)
        assert chosen in ("any", best)
        assert exact.keys() == expected.keys()
        for name, value in expected.items():
            bits = torch.int8 if value.dtype.is_floating_point else value.dtype
            assert torch.equal(exact[name].view(bits), value.view(bits)), (limit, name)
        for name, value in products.items():
            # Sums that differ in their last bits may be rounded to two neighbours.
            rtol = 2**-7 if value.dtype == torch.bfloat16 else 1e-5
            torch.testing.assert_close(others[name], value, rtol=rtol, atol=1e-5)

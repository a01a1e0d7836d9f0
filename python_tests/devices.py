"""The devices a test runs on: the CPU, and CUDA, skipped with the reason where there is none.

A test of an operator runs a third time, on the CPU with the CUDA kernel in the place of the CPU's
(cuda_on_host/), where everything that the kernel does wrong is an error.
"""

from __future__ import annotations

import pytest
import torch


def needs_cuda(test):
    """Marks a test that is about CUDA alone."""
    skip = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    return pytest.mark.cuda(skip(test))


ON_CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.cuda,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    ],
)
on_devices = pytest.mark.parametrize("device", ["cpu", ON_CUDA])
on_cuda = pytest.mark.parametrize("device", [ON_CUDA])
CUDA_ON_HOST = pytest.param("cpu", id="cuda-on-host", marks=pytest.mark.cuda_on_host)
on_kernels = pytest.mark.parametrize("device", ["cpu", CUDA_ON_HOST, ON_CUDA])

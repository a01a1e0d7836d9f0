"""The devices a test runs on: the CPU, and CUDA, skipped with the reason where there is none."""

from __future__ import annotations

import pytest
import torch

AVAILABLE_DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


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

"""Its place makes pytest put this folder on the path: tests in all folders share its modules."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cuda_on_host import library

# What says float32 is compared as float32: on a GPU cuDNN would round it to TF32's ten bits.
torch.backends.cudnn.allow_tf32 = False


@pytest.fixture(autouse=True)
def cuda_kernels_on_host(request: pytest.FixtureRequest) -> Iterator[None]:
    """For tests marked so (see devices.py)."""
    if request.node.get_closest_marker("cuda_on_host") is None:
        yield
        return
    with library.in_place_of_cpu_kernels():
        yield

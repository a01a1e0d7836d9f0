"""Its place makes pytest put this folder on the path: tests in all folders share its modules."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from cuda_on_host import library

from anchornet_ext._machine import using_threads
from anchornet_ext.evaluation import theme

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


@pytest.fixture(scope="session", autouse=True)
def coarse_figures() -> Iterator[None]:
    """A quarter of the usual resolution: fine figures take half as long again to draw."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theme, "PNG_DPI", 50)
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For what depends on the number of threads, and for whole processes that set it."""
    with using_threads(1):
        yield

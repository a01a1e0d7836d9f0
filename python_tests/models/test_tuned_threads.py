"""A tuned network is called by several threads, of which the first makes its graph."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from anchornet_ext import _extension
from anchornet_ext.models import build_backbone
from anchornet_ext.models.graph_tracing import trace
from anchornet_ext.models.tuning import tune

pytestmark = pytest.mark.skipif(
    not _extension.available(), reason="the native library is not built"
)


class Pausing(nn.Module):
    """Lets others run in the middle of its way."""

    def __init__(self, pause: Callable[[], None]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.pause = pause

    def forward(self, images: Tensor) -> Tensor:
        first = self.first(images)
        self.pause()
        second: Tensor = self.second(first)
        return second


def test_other_modules_run_while_a_network_is_traced() -> None:
    """`torch.fx` takes over the calls of all modules, in whatever thread they are."""
    other = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    images = torch.rand(1, 2)
    expected = other(images)
    seen: list[Tensor] = []

    def run_other() -> None:
        seen.append(other(images))

    def pause() -> None:
        thread = threading.Thread(target=run_other)
        thread.start()
        thread.join()

    traced = trace(Pausing(pause).eval())
    assert traced is not None
    assert len(seen) == 1
    assert torch.equal(seen[0], expected)
    assert [node.op for node in traced.graph.nodes].count("call_module") == 2


def test_the_first_calls_may_come_together() -> None:
    network = build_backbone("cifar/resnet20", 5).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = network(images)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            tuned = tune(network, image_size=(32, 32))
            together = threading.Barrier(4)

            def call(tuned: nn.Module = tuned, together: threading.Barrier = together) -> Tensor:
                together.wait()
                result: Tensor = tuned(images)
                return result

            for call_of_one in [pool.submit(call) for _ in range(4)]:
                torch.testing.assert_close(call_of_one.result(), expected, rtol=1e-4, atol=1e-4)

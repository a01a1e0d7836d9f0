"""A stream's passes as CUDA graphs: hundreds of kernels started by one call.

Not yet run on a GPU: tests hold what can be seen without one, that a pass reads and writes nothing
but memory that stays in its place, and never waits for the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .stream_state import Outcome, PlacedPass

#: Before a pass is recorded it runs so often, as libraries choose their kernels in the first calls.
WARM_UP = 3


class CudaGraphs:
    """Records passes, all in one pool of memory; a `stream_state.Recorder`.

    The passes must run one after the other, on one CUDA stream, as those of a stream do.
    """

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, run: PlacedPass, places: Tensor) -> PlacedPass:
        """A function that does what `run` does to places of the shape of these.

        What it returns is overwritten by its next call. What is at `places` goes through the pass
        several times, so they should be of no image.
        """
        static = places.clone()
        side = torch.cuda.Stream(places.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(places.device))
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                run(static)
        torch.cuda.current_stream(places.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            outcome = run(static)
        self._pool = graph.pool()

        def replay(places: Tensor) -> Outcome:
            static.copy_(places, non_blocking=True)
            graph.replay()
            return outcome

        return replay

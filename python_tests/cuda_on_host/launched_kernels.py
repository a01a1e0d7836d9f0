"""A plugin for pytest that writes down which kernels ran: `-p cuda_on_host.launched_kernels`.

Their names go to the file that the environment variable LAUNCHED_KERNELS names, one in a line.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

_profiler = pytest.StashKey[profile]()


def pytest_sessionstart(session: pytest.Session) -> None:
    activity = ProfilerActivity.CUDA if torch.cuda.is_available() else ProfilerActivity.CPU
    profiler = session.config.stash[_profiler] = profile(activities=[activity])
    profiler.start()


def pytest_sessionfinish(session: pytest.Session) -> None:
    profiler = session.config.stash[_profiler]
    profiler.stop()
    names = sorted({event.name for event in profiler.events() or ()})
    Path(os.environ["LAUNCHED_KERNELS"]).write_text("".join(f"{name}\n" for name in names))

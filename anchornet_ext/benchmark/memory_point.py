"""One measurement of the suite `memory`, in a process of its own.

python -m anchornet_ext.benchmark.memory_point RUN BACKBONE SIZE BATCH DEVICE
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from anchornet_ext.models import build_backbone
from anchornet_ext.models.tuning import tune

from .networks import random_classifier

RUNS = ("system", "stream", "dense")
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main(run: str, backbone: str, size: int, batch: int, device: torch.device) -> dict[str, int]:
    """Bytes of a batch at its peak, and of the networks between batches.

    The first run is not counted: it brings the weights into the order that the kernels read, which
    stays. The images are in neither number.

    Returns:
        "peak": above what the process has between batches; "networks": what the networks hold then,
        on the CPU with what PyTorch and its libraries keep for them.
    """
    nothing = _held(device)
    images = torch.randn(batch, 3, size, size)
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    call = _call(run, backbone, images)
    call()
    before = _held(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device)
    else:
        _RESET.write_text("5")  # the peak is now what there is
        call()
        peak = _resident("VmHWM")
    return {"peak": peak - before, "networks": before - nothing - images.nbytes}


def _held(device: torch.device) -> int:
    """Bytes that are in use, without those that were freed."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.memory_allocated(device)
    # What the C library has been given back and keeps would hide as much of the next peak.
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    try:
        return _resident("VmRSS")
    except OSError as error:
        raise RuntimeError(f"this system does not tell the memory of a process: {error}") from error


def _call(run: str, backbone: str, images: Tensor) -> Callable[[], object]:
    if run == "dense":
        dense = tune(build_backbone(backbone, 1000)).to(images.device)
        return lambda: dense(images)
    classifier = random_classifier(backbone).tuned().to(images.device)
    if run == "system":
        return lambda: classifier.classify(images, exit_at=classifier.num_exits)
    return lambda: [
        result.found
        for result in classifier.stream(
            images, batch=32, exit_at=classifier.num_exits, image_size=tuple(images.shape[2:])
        )
    ]


def _resident(name: str) -> int:
    """VmRSS or VmHWM, in bytes."""
    for line in _STATUS.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return 1024 * int(value.split()[0])
    raise OSError(f"{_STATUS} has no {name}")


if __name__ == "__main__":
    kind, name, pixels, images, where = sys.argv[1:]
    print(json.dumps(main(kind, name, int(pixels), int(images), torch.device(where))))

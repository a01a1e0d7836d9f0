"""One measurement of the suite `memory`, in a process of its own.

python -m anchornet_ext.benchmark.memory_point RUN BACKBONE SIZE BATCH DEVICE
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from anchornet_ext.models import build_backbone
from anchornet_ext.models.tuning import tune

from .networks import random_classifier

RUNS = ("system", "stream", "dense")
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main(run: str, backbone: str, size: int, batch: int, device: torch.device) -> int:
    """Bytes at the peak above what the process had before."""
    call = _call(run, backbone, size, batch, device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        _RESET.write_text("5")  # the peak is now what there is
        before = _resident("VmRSS")
    except OSError as error:
        raise RuntimeError(f"this system does not tell the peak of a process: {error}") from error
    call()
    return _resident("VmHWM") - before


def _call(
    run: str, backbone: str, size: int, batch: int, device: torch.device
) -> Callable[[], object]:
    images = torch.randn(batch, 3, size, size)
    images = images.to(device).contiguous(memory_format=torch.channels_last)
    if run == "dense":
        dense = tune(build_backbone(backbone, 1000)).to(device)
        return lambda: dense(images)
    classifier = random_classifier(backbone).tuned().to(device)
    if run == "system":
        return lambda: classifier.classify(images, exit_at=classifier.num_exits)
    return lambda: [
        result.found
        for result in classifier.stream(
            images, batch=32, exit_at=classifier.num_exits, image_size=(size, size)
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
    print(json.dumps({"peak": main(kind, name, int(pixels), int(images), torch.device(where))}))

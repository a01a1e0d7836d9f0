"""Suite `memory`: how much memory a batch takes at its peak, and the networks all the time.

Every row is a process of its own, which builds the networks, runs once so that they have all that
they keep, gives back what is free, resets the peak, runs again and tells. On the CPU that is the
resident set of the process, so the buffers of the libraries are in it; on a CUDA device, what
PyTorch's allocator handed out. The images that go in are not counted.

"system" runs every image to the last exit, "stream" as well, in batches of 32; "dense" is the
backbone on the whole image. All are tuned in the same way, in float32.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping

from .end_to_end import BACKBONES
from .end_to_end import check as check
from .harness import Options, Row, Setting, one_line
from .memory_point import RUNS

NAME = "memory"
SUMMARY = "peak memory of a batch, the system's and the dense network's"
#: Seconds that a process may take.
_PATIENCE = 600


def measure(options: Options) -> Iterator[Row]:
    """The rows of all backbones, sizes and batches."""
    usual = ("mobilenet_v3_small",) if options.quick else BACKBONES
    for backbone in options.backbones or usual:
        for size in options.sizes or ((112,) if options.quick else (224,)):
            for batch in options.batches or ((2,) if options.quick else (1, 32, 256)):
                settings: dict[str, Setting] = {"backbone": backbone, "size": size, "batch": batch}
                for run in RUNS:
                    yield measure_run(run, settings, str(options.device))


def measure_run(run: str, settings: Mapping[str, Setting], device: str) -> Row:
    """One process: RUN of `memory_point` on a backbone, a size and a batch."""
    words = [run, settings["backbone"], settings["size"], settings["batch"], device]
    command = [sys.executable, "-m", "anchornet_ext.benchmark.memory_point", *map(str, words)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=_PATIENCE
        )
        if done.returncode:
            reason = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
            return Row(NAME, run, settings, error=reason[-1])
        told = json.loads(done.stdout.splitlines()[-1])
        facts = {"peak bytes": int(told["peak"]), "networks bytes": int(told["networks"])}
    except (subprocess.TimeoutExpired, OSError, ValueError, LookupError, TypeError) as error:
        return Row(NAME, run, settings, error=one_line(error))
    return Row(NAME, run, settings, facts=facts)


def describe(row: Row) -> str:
    """In all, and of an image."""
    if "peak bytes" not in row.facts:
        return ""
    peak, networks = (row.facts[f"{name} bytes"] / 2**20 for name in ("peak", "networks"))
    an_image = peak / int(row.settings["batch"])
    return f"{peak:,.1f} MiB at the peak, {an_image:,.2f} an image; networks {networks:,.0f}"

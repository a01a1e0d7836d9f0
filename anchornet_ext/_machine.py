"""What this machine is."""

from __future__ import annotations

import platform
from pathlib import Path


def processor_name() -> str:
    """The CPU's name, as well as it can be found out."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()

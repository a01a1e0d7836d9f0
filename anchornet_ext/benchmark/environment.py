"""What times depend on besides the code."""

from __future__ import annotations

import datetime
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from anchornet_ext._arguments import usable_cores
from anchornet_ext._machine import processor_name
from anchornet_ext._version import __version__
from anchornet_ext.evaluation.timing import clock_for

from .freed_memory import freed_memory


@dataclass(frozen=True)
class Environment:
    """Where and when rows were measured.

    Attributes:
        version: of anchornet_ext.
        device: the processor's or the GPU's name.
        device_type: "cpu" or "cuda".
        threads: torch's, on the CPU.
        cores: that the process may use.
        instruction_set: that torch's CPU kernels use.
        clock: what seconds are, in words.
        cuda_version: that torch was built with, or None.
        freed_memory: "kept" by the process, or "returned" to the system as the C library likes.
        command: what was run, without the names of files.
        date: of the start, in UTC.
    """

    version: str
    torch_version: str
    cuda_version: str | None
    python_version: str
    system: str
    device: str
    device_type: str
    threads: int
    cores: int
    instruction_set: str
    clock: str
    freed_memory: str
    command: str
    date: str

    #: Two runs that differ in one of these do not measure the same; the rest is for the record.
    MATTERS = (
        "device",
        "device_type",
        "threads",
        "instruction_set",
        "torch_version",
        "clock",
        "freed_memory",
    )

    @classmethod
    def of(cls, device: torch.device, command: str) -> Environment:
        """That of this process now."""
        on_cpu = device.type == "cpu"
        alone = clock_for(device) is time.thread_time
        return cls(
            version=__version__,
            torch_version=torch.__version__,
            cuda_version=torch.version.cuda,
            python_version=platform.python_version(),
            system=f"{platform.system()} {platform.machine()}",
            device=processor_name() if on_cpu else torch.cuda.get_device_name(device),
            device_type=device.type,
            threads=torch.get_num_threads(),
            cores=usable_cores(),
            instruction_set=torch.backends.cpu.get_cpu_capability(),
            clock="time that the one thread had a processor" if alone else "wall clock",
            freed_memory=freed_memory(),
            command=command,
            date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        )

    @property
    def summary(self) -> str:
        """One line for the head of a table."""
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return (
            f"anchornet_ext {self.version}, torch {self.torch_version}, {self.device}, "
            f"{threads}, {self.instruction_set}; clock: {self.clock}; "
            f"freed memory {self.freed_memory}"
        )

    def differences(self, other: Environment) -> list[str]:
        """In words, what differs from `other` and matters to times."""
        lines = []
        for name in self.MATTERS:
            here, there = getattr(self, name), getattr(other, name)
            if here != there:
                lines.append(f"{name.replace('_', ' ')}: {here} now, {there} then")
        return lines

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> Environment:
        """What `to_dict` described; entries of a later version are ignored.

        Raises:
            ValueError: it is no such description.
        """
        if not isinstance(values, Mapping):
            raise ValueError(f"the environment must be a mapping, got {type(values).__name__}")
        values = {"freed_memory": "kept", **values}  # before there was a choice
        known = {field.name: str(field.type) for field in fields(cls)}
        missing = [name for name in known if name not in values]
        if missing:
            raise ValueError(f"the environment has no entry {missing[0]!r}")
        for name, kind in known.items():
            value = values[name]
            if not isinstance(value, int if kind == "int" else str | None):
                raise ValueError(f"the environment's {name} is {value!r}, expected {kind}")
        return cls(**{name: values[name] for name in known})

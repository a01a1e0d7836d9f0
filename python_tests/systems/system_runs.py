"""How the tests train a system, and what they know of its run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from anchornet_ext.data.image_folder import scan
from anchornet_ext.data.photos import read_photo
from anchornet_ext.evaluation.systems import ExitSystem
from anchornet_ext.systems import System
from anchornet_ext.systems.common.loading import load_system


def train_flags(system: System, photos: Path, run: Path, *more: object) -> list[str]:
    """`anchornet train` for two epochs of one step each, of every stage."""
    flags = ["train", "--system", system.name, "--data", photos, "--out", run, *system.tiny]
    flags += ["--workers", 0, "--threads", 1, "--cache", "--seed", 3]
    for stage in system.stages:
        flags += [f"--{stage.name}-epochs", 2, f"--{stage.name}-batch", 24]
    return [str(flag) for flag in [*flags, *more]]


@dataclass
class Trained:
    """A finished run."""

    system: System
    run: Path

    @cached_property
    def exits(self) -> ExitSystem:
        """What `anchornet evaluate` evaluates."""
        return load_system(self.run, torch.device("cpu"))

    def images(self, photos: Path) -> tuple[Tensor, Tensor]:
        """The validation photos as the system sees them, (21, 3, S, S), and their labels."""
        samples = scan(photos / "val")
        prepared = [self.exits.preprocessing(read_photo(path)) for path in samples.paths]
        return torch.stack(prepared), torch.tensor(samples.labels)

"""The training settings that a network was published with, where its system's usual ones differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anchornet_ext.training.config import StageConfig

#: Side in pixels of the images of CIFAR.
CIFAR_SIDE = 32


@dataclass(frozen=True)
class Recipe:
    """Defaults of `anchornet train` for one choice of network; a flag that is given wins over them.

    Attributes:
        source: whose settings they are, for --help and the log.
        stages: stage -> its hyper-parameters, instead of the stage's own default.
        options: the system's options, instead of their own defaults; None: these.
        resize_size, crop_size: side in pixels of photo and crop.
    """

    source: str
    stages: Mapping[str, StageConfig]
    options: Any = None
    resize_size: int = CIFAR_SIDE
    crop_size: int = CIFAR_SIDE

"""What a system is: its settings, its stages of training, and its finished model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from anchornet_ext._options import to_json
from anchornet_ext.evaluation.systems import ExitSystem
from anchornet_ext.training.config import Stage
from anchornet_ext.training.distributed import World
from anchornet_ext.training.plan import Plan, Supply
from anchornet_ext.training.task import Task

from .recipe import Recipe

#: Where in the folder of a run the finished model is.
MODEL = "model"


def display_name(title: str, folder: Path) -> str:
    """What a model is called in reports: by its system and its run."""
    folder = folder.resolve()
    return f"{title} ({folder.parent.name if folder.name == MODEL else folder.name})"


class System(ABC):
    """One way to classify images at a cost that differs from image to image.

    A system of which one network is the result should rather derive from `NetworkSystem`, which
    saves and loads it.

    Attributes:
        name: on the command line and in files; that of its file.
        title: in reports.
        summary: one line for --help.
        explanation: a few sentences for the reader of a report; None: what the number of exits
            tells.
        Options: a frozen dataclass of `_options.option` fields: the command's flags and what is
            saved with the model. Its `__post_init__` raises ValueError for bad values.
        stages: what is trained, in the order in which the stages need each other.
        decisive: the option, if any, on which the published training settings depend (`recipe`).
        tiny: flags that make it train within seconds, as small as it gets: for trying it out, and
            for the tests that all systems must pass (python_tests/systems).
    """

    name: ClassVar[str]
    title: ClassVar[str]
    summary: ClassVar[str]
    explanation: ClassVar[str | None] = None
    Options: ClassVar[type[Any]]
    stages: ClassVar[tuple[Stage, ...]]
    decisive: ClassVar[str | None] = None
    tiny: ClassVar[tuple[str, ...]]

    # ---- training ----

    def recipe(self, choice: str | None) -> Recipe | None:
        """The published settings, where the option `decisive` is `choice`, if they are not usual.

        Args:
            choice: what the command line says, which need be no valid value; None: nothing.
        """
        return None

    def stages_to_run(self, options: Any) -> tuple[str, ...]:
        """The stages that run unless told otherwise (--stages)."""
        return tuple(stage.name for stage in self.stages)

    def identity(self, options: Any) -> Mapping[str, Any]:
        """The settings that all stages in one RUN must agree on, ready for JSON."""
        return to_json(options, start=False)

    def stage_identity(self, options: Any) -> Mapping[str, Any]:
        """The settings that a stage that is resumed must agree on, ready for JSON."""
        return to_json(options, start=False)

    @abstractmethod
    def require(self, plan: Plan, stages: Sequence[str], world: World) -> None:
        """Checks, before any work, that every stage will find what it needs.

        Raises:
            ValueError: an option, a size of an image or of a batch, or a missing earlier stage.
            ImportError: an operator or a package is missing.
        """

    @abstractmethod
    def task(self, stage: str, plan: Plan, supply: Supply) -> Task:
        """What `stage` trains; earlier stages' best weights are in RUN by now.

        torch's random stream is seeded before the call.

        Raises:
            ValueError, OSError: weights to start from are missing or do not fit.
        """

    @abstractmethod
    def finish(self, plan: Plan) -> Sequence[str]:
        """Writes the finished model into RUN/model, when all that it needs has been trained.

        Returns:
            The stages that are still to be trained; then nothing is written.
        """

    # ---- what was trained ----

    @abstractmethod
    def load(self, folder: Path, device: torch.device) -> ExitSystem:
        """What `finish` wrote, ready to be evaluated.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged or not of this system.
        """

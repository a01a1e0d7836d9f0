"""Systems that are one network with intermediate classifiers, trained for all of them at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from anchornet_ext.training.config import Stage, StageConfig
from anchornet_ext.training.exits import ExitsTask
from anchornet_ext.training.plan import Plan, Supply
from anchornet_ext.training.task import Task

from .network_system import NetworkSystem
from .preset_options import PresetOptions
from .recipe import Recipe
from .storage import Saved


class ExitNetworkSystem(NetworkSystem):
    """A network (B, 3, S, S) -> (T, B, n), see `models.exits.ExitNetwork`.

    The defaults of its one stage are those of both papers for ImageNet, or for CIFAR where the
    preset's stem is the small one.

    Attributes:
        Options: presets of configurations that have a `stem`, and what is changed about them.
    """

    Options: ClassVar[type[PresetOptions]]
    decisive = "preset"

    stages: ClassVar[tuple[Stage, ...]] = (
        Stage(
            "network",
            StageConfig(
                epochs=90,
                batch=256,
                lr=0.1,
                schedule="step",
                milestones=(33.3, 66.7),
                nesterov=True,
            ),
            {"size", "dropout"},
            "the whole network, for all exits together",
        ),
    )
    parts: ClassVar[Mapping[str, str]] = {"network": ""}

    def recipe(self, choice: str | None) -> Recipe | None:
        """MSDNet's section 5 and RANet's section 4 train on CIFAR alike."""
        presets = self.Options.presets
        if choice is None or choice not in presets or presets[choice].stem != "small":
            return None
        (stage,) = self.stages
        published = replace(
            stage.default, epochs=300, batch=64, schedule="step", milestones=(50.0, 75.0), pad=4
        )
        return Recipe(f"the paper's training on CIFAR, as --preset is {choice}",
                      {stage.name: published}, self.Options(preset=choice))  # fmt: skip

    def task(self, stage: str, plan: Plan, supply: Supply) -> Task:
        """See `System.task`."""
        network: Any = self.build(plan.options, plan.num_classes)
        config = plan.configs[stage]
        return ExitsTask(
            stage,
            network,
            config,
            supply.batches(plan, config),
            plan.preprocessing,
            plan.num_classes,
            network.num_exits,
        )

    def about(self, network: Any, saved: Saved) -> Mapping[str, Any]:
        """What its exits would cost in whole blocks, as published tables count them."""
        side = saved.preprocessing.crop_size
        schedule = network.schedule
        network.schedule = "blocks"
        whole = network.macs_per_exit((side, side))
        network.schedule = schedule
        return {"schedule": schedule, "macs_per_exit_blocks": list(whole)}

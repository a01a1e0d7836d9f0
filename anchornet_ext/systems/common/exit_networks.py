"""Systems that are one network with intermediate classifiers, trained for all of them at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from anchornet_ext.training.config import Stage, StageConfig
from anchornet_ext.training.exits import ExitsTask
from anchornet_ext.training.plan import Plan, Supply
from anchornet_ext.training.task import Task

from .network_system import NetworkSystem


class ExitNetworkSystem(NetworkSystem):
    """A network (B, 3, S, S) -> (T, B, n), see `models.exits.ExitNetwork`.

    The defaults of its one stage are those of both papers for ImageNet.
    """

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

"""Options of networks that papers have published configurations of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from anchornet_ext._options import option
from anchornet_ext.models.exits import SCHEDULES
from anchornet_ext.models.network_config import require_choice


@dataclass(frozen=True)
class PresetOptions:
    """A published configuration, and what is different from it.

    A subclass has a field for each setting of the network, by its name there; None is the preset's.

    Attributes:
        presets: the published configurations by name, all of one dataclass.
    """

    presets: ClassVar[Mapping[str, Any]]

    preset: str = option("", "a published configuration")
    schedule: str = option(
        "needed", "what is computed before an exit: all blocks, or what it needs", SCHEDULES
    )

    def __post_init__(self) -> None:
        require_choice(self.preset, "preset", tuple(self.presets))
        require_choice(self.schedule, "schedule", SCHEDULES)
        self.config()  # checks the rest

    def config(self) -> Any:
        """The settings of the network.

        Raises:
            ValueError: they make none.
        """
        preset = self.presets[self.preset]
        changed = {
            item.name: getattr(self, item.name)
            for item in fields(preset)
            if getattr(self, item.name) is not None
        }
        return replace(preset, **changed)

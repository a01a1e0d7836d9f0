"""Systems whose result is one network that goes from exit to exit."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from anchornet_ext._options import from_json, to_json
from anchornet_ext.evaluation.network_exits import NetworkExits
from anchornet_ext.evaluation.systems import ExitSystem
from anchornet_ext.models import require_input_size
from anchornet_ext.training.checkpoint import load_weights
from anchornet_ext.training.distributed import World
from anchornet_ext.training.plan import Plan

from . import storage
from .system import MODEL, System, display_name


class NetworkSystem(System):
    """A system that needs to say no more than its network and how each stage trains it.

    Attributes:
        parts: stage -> the submodule of the network that its best weights are of; "" is the whole
            network. The stages that are not in it only prepare others.
    """

    parts: ClassVar[Mapping[str, str]]

    @abstractmethod
    def build(self, options: Any, num_classes: int) -> nn.Module:
        """The network with random weights, never with downloaded ones.

        It is an `inference.lazy_exits.LazyNetwork`: `num_classes`, `num_exits`, `begin(images)` to
        go from exit to exit, `macs_per_exit(image_size)`.

        Raises:
            ValueError, ImportError: the options make no network.
        """

    def require(self, plan: Plan, stages: Sequence[str], world: World) -> None:
        """The network can be built and takes images of the size of the crop."""
        network = self.build(plan.options, plan.num_classes)
        require_input_size(network, plan.preprocessing.crop_size)

    def trained(self, plan: Plan) -> nn.Module:
        """The network with the best weights of all stages in `parts`."""
        network = self.build(plan.options, plan.num_classes)
        for stage, part in self.parts.items():
            load_weights(network.get_submodule(part), plan.best(stage))
        return network

    def macs_per_exit(self, network: Any, plan: Plan) -> tuple[int, ...]:
        """(T,) multiply-adds at the size of the crop."""
        side = plan.preprocessing.crop_size
        counted: tuple[int, ...] = network.macs_per_exit((side, side))
        return counted

    def finish(self, plan: Plan) -> Sequence[str]:
        """Writes the network that `trained` gives."""
        missing = [stage for stage in self.parts if not plan.best(stage).is_file()]
        if missing:
            return missing
        network = self.trained(plan).eval()
        saved = storage.Saved(
            system=self.name,
            options=to_json(plan.options, start=False),
            class_names=plan.class_names,
            preprocessing=plan.preprocessing,
            macs_per_exit=self.macs_per_exit(network, plan),
        )
        storage.save(plan.run / MODEL, network, saved)
        return ()

    def load(self, folder: Path, device: torch.device) -> ExitSystem:
        """See `System.load`."""
        network, saved = self.load_network(folder)
        return self.exits(network, saved, folder, device)

    def load_network(self, folder: Path) -> tuple[nn.Module, storage.Saved]:
        """The network that `finish` wrote, on the CPU, and its configuration.

        Raises:
            FileNotFoundError, ValueError: as `load`.
        """
        saved = storage.read(folder)
        if saved.system != self.name:
            raise ValueError(f"{folder} is of the system {saved.system!r}, not {self.name!r}")
        try:
            options = from_json(self.Options, saved.options)
        except ValueError as error:
            raise ValueError(f"{folder / storage.CONFIG}: {error}") from error
        network = self.build(options, len(saved.class_names))
        storage.load_weights(network, folder)
        return network.eval(), saved

    def exits(
        self, network: nn.Module, saved: storage.Saved, folder: Path, device: torch.device
    ) -> ExitSystem:
        """The network as what is evaluated."""
        return NetworkExits(network, device=device, **self.described(network, saved, folder))

    def described(self, network: nn.Module, saved: storage.Saved, folder: Path) -> dict[str, Any]:
        """What `NetworkExits` is told of the saved network."""
        return {
            "name": display_name(self.title, folder),
            "checksum": saved.checksum,
            "class_names": saved.class_names,
            "preprocessing": saved.preprocessing,
            "policy": saved.policy,
            "about": {
                "model": str(folder),
                "kind": self.name,
                "options": dict(saved.options),
                **self.about(network, saved),
            },
            "explanation": self.explanation,
        }

    def about(self, network: Any, saved: storage.Saved) -> Mapping[str, Any]:
        """What else a report should say of the network, ready for JSON."""
        return {}

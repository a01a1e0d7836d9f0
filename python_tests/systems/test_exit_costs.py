"""What a saved MSDNet or RANet says that its exits cost is what early exit computes there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from anchornet_ext._options import to_json
from anchornet_ext.data.transforms import Preprocessing
from anchornet_ext.models.exits import SCHEDULES, ExitNetwork
from anchornet_ext.systems import find_system
from anchornet_ext.systems.common import storage
from anchornet_ext.systems.common.loading import load_system

SIDE = 32


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("msdnet", {"preset": "cifar-batch"}),
        ("ranet", {"preset": "cifar-growing", "growth": 4, "channels": 4}),
    ],
)
def test_what_is_counted_is_what_is_computed(
    name: str, changed: dict[str, object], schedule: str, tmp_path: Path
) -> None:
    system = find_system(name)
    options = system.Options(**changed, schedule=schedule)
    network = system.build(options, 10)  # type: ignore[attr-defined]
    assert isinstance(network, ExitNetwork)
    saved = storage.Saved(
        system=name,
        options=to_json(options, start=False),
        class_names=tuple(map(str, range(10))),
        preprocessing=Preprocessing(resize_size=SIDE, crop_size=SIDE),
        macs_per_exit=network.macs_per_exit((SIDE, SIDE)),
    )
    storage.save(tmp_path, network, saved)
    exits = load_system(tmp_path, torch.device("cpu"))
    costs = exits.macs_per_exit()
    assert costs == saved.macs_per_exit
    images = torch.zeros(2, 3, SIDE, SIDE)
    for step, cost in enumerate(costs, start=1):
        with FlopCounterMode(display=False) as counter:
            exits.classify(images, exit_at=step)
        assert counter.get_total_flops() == 2 * len(images) * cost
    assert exits.about["schedule"] == schedule
    whole = exits.about["macs_per_exit_blocks"]
    if name == "msdnet" and schedule == "needed":
        assert whole[0] > costs[0]
        assert whole[-1] == costs[-1]
    else:
        assert tuple(whole) == costs

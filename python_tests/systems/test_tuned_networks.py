"""What a system runs in one piece is tuned like the networks that it is compared with."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from anchornet_ext.data.transforms import Preprocessing
from anchornet_ext.evaluation.network_exits import NetworkExits
from anchornet_ext.models import build_backbone
from anchornet_ext.models.single_exit import SingleExit
from anchornet_ext.models.tuning import TunedNetwork
from anchornet_ext.systems.cascade import Cascade

SIDE = 32


def cascade() -> nn.Module:
    small, large = (build_backbone("cifar/resnet8", 3) for _ in range(2))
    return Cascade(small, large, (16, 24), 3)


@pytest.mark.parametrize(
    ("network", "parts"),
    [
        (lambda: SingleExit(build_backbone("cifar/resnet8", 3), 3), ["network"]),
        (cascade, ["small", "large"]),
    ],
)
def test_networks_that_run_as_a_whole_are_tuned_with_their_graphs(
    network: type[nn.Module], parts: list[str]
) -> None:
    given = network().eval()
    exits = NetworkExits(given, "it", "", "abc", Preprocessing(SIDE, SIDE), torch.device("cpu"))
    for part in parts:
        tuned = exits.network.get_submodule(part)  # type: ignore[attr-defined]
        assert isinstance(tuned, TunedNetwork)
        assert tuned.norms.folded > 0
        assert not tuned.norms.kept
        assert not isinstance(given.get_submodule(part), TunedNetwork)  # a copy was
    assert exits.macs_per_exit() == given.macs_per_exit((SIDE, SIDE))  # type: ignore[operator]
    images = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        torch.testing.assert_close(
            exits.anytime_logits(images), given(images), rtol=1e-4, atol=1e-4
        )

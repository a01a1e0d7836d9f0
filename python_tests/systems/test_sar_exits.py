"""SAR's system runs the selected cells alone, or masks whole maps where it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from anchornet_ext import _extension
from anchornet_ext.data.transforms import Preprocessing
from anchornet_ext.models.sar import SparseSAR, build_sar, set_activation
from anchornet_ext.systems import sar
from anchornet_ext.systems.common.storage import Saved


def exits_of(network: torch.nn.Module) -> sar.SARExits:
    saved = Saved(
        system="sar",
        options={},
        class_names=tuple("abcdefghij"),
        preprocessing=Preprocessing(crop_size=32, resize_size=32),
        macs_per_exit=(1,),
    )
    return sar.SARExits(network, saved, "SAR", torch.device("cpu"), 0.5, {"model": str(Path("m"))})


def test_both_ways_to_run_it_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    network, images = build_sar("resnet20", 10), torch.randn(4, 3, 32, 32)
    set_activation(network, images, 0.5)
    sparse = exits_of(network)
    assert isinstance(sparse._network, SparseSAR)
    assert sparse.about["refinement"] == "selected cells, or masked maps where faster"
    monkeypatch.setattr(_extension, "available", lambda: False)
    masked = exits_of(network)
    assert masked.about["refinement"] == "whole maps, masked"
    (logits, costs), (expected, same) = (e.logits_and_costs(images) for e in (sparse, masked))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(costs, same)
    assert costs.max() < sparse.classify(images).full_macs


def test_bytes_are_no_normalised_images() -> None:
    """They would be computed with as if they were, and classified wrongly."""
    system = exits_of(build_sar("resnet20", 10))
    with pytest.raises(TypeError, match=r"normalised, got torch\.uint8"):
        system.classify(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"got \(2, 1, 32, 32\)"):
        system.classify(torch.zeros(2, 1, 32, 32))

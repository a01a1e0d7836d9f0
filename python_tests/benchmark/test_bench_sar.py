"""The suite `sar` compares networks that give the same answers, at the activation it names."""

from __future__ import annotations

import argparse

import pytest
import torch

from anchornet_ext.benchmark import sar
from anchornet_ext.benchmark.harness import Options
from anchornet_ext.models.sar import sar_cost


def options(**arguments: object) -> Options:
    return Options(torch.device("cpu"), quick=True, arguments=argparse.Namespace(**arguments))


def test_every_contender_is_measured() -> None:
    rows = list(sar.measure(options(activations=[0.25])))
    assert not [row.error for row in rows if row.error]
    assert [row.name for row in rows] == ["sparse", "masked", "backbone"]
    sparse, masked, backbone = (row.facts["macs"] for row in rows)
    assert sparse < masked < backbone
    assert set(rows[0].ratios) == {"masked", "backbone"}
    assert rows[0].facts["promised"]["masked"] == pytest.approx(masked / sparse)
    assert "over masked promised" in sar.describe(rows[0])
    assert sar.describe(rows[1]).endswith("M multiply-adds")


@pytest.mark.parametrize("kind", ["own", "random"])
def test_sparse_and_masked_answer_the_same(kind: str) -> None:
    torch.manual_seed(0)
    networks = sar.Networks("resnet20", 32, 8, 0.5, torch.float32, options(), kind)
    with torch.no_grad():
        calls = networks.build()
        torch.testing.assert_close(calls["sparse"](), calls["masked"](), rtol=1e-4, atol=1e-4)
    half = sar_cost(sar._build("resnet20", 2), (32, 32)).at(0.5)
    assert networks.macs["sparse"] == pytest.approx(half, rel=0.02)


def test_drawn_masks_differ_between_images() -> None:
    torch.manual_seed(0)
    networks = sar.Networks("resnet20", 32, 3, 0.5, torch.float32, options(), "random")
    masks = networks._masks(sar._build("resnet20", 2).eval(), torch.randn(3, 3, 32, 32))
    assert all(not torch.equal(m[:, 0], m[:, 1]) for m in masks)


def test_groups_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="3 groups"):
        sar.check(options(sar_groups=3))


def test_drawn_masks_are_not_compiled() -> None:
    with pytest.raises(ValueError, match="--masks random"):
        sar.check(options(masks=["random"], compiled=True))


@pytest.mark.parametrize("bad", ["-0.1", "2", "half", "nan"])
def test_what_is_no_share_is_refused(bad: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="no share"):
        sar._share(bad)

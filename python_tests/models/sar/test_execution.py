"""Which refinement branches run on cells and which on whole maps: both, and as the rule says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anchornet_ext.models.sar import ModuleOptions, SparseSAR, build_sar
from anchornet_ext.models.sar import sparse as sparse_network
from anchornet_ext.models.sar.blocks import Basic, Bottleneck, InvertedResidual, Shape
from anchornet_ext.models.sar.execution import kind_of, largest_share, runs_on_maps
from anchornet_ext.models.sar.grid import Grid

FAMILIES = {
    "basic": Basic(),
    "bottleneck": Bottleneck(),
    "grouped": Bottleneck(expansion=2, cardinality=4),
    "depthwise": InvertedResidual(expansion=2),
}


def masks_of(selected: int, images: int = 1) -> torch.Tensor:
    """(2, B, 2, 7, 7): so many of each image's 98 cells in the second block, all in the first."""
    masks = torch.ones(2, images, 2, 7, 7, dtype=torch.bool)
    masks[1].view(images, 98)[:, selected:] = False
    return masks


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", sorted(FAMILIES))
def test_a_branch_is_of_the_kind_of_its_blocks(kind, groups):
    block = FAMILIES[kind].build(Shape(16, 16, groups=groups))
    assert kind_of([block], groups) == kind


@settings(deadline=None, max_examples=30)
@given(
    kind=st.sampled_from(sorted(FAMILIES)),
    images=st.integers(0, 40),
    side=st.integers(1, 60),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_maps_stay_the_choice_when_more_is_selected(kind, images, side, dtype):
    grid = Grid.over(side, side, 7)
    x = torch.zeros(images, 2, side, side, dtype=dtype)
    choices = [runs_on_maps(kind, x, masks_of(n, images)[1:], grid) for n in range(0, 99, 7)]
    assert not choices[0]  # there is nothing to do
    assert choices == sorted(choices)
    assert 0 <= largest_share(kind, images, grid) <= 1


def test_only_what_was_measured_runs_on_maps():
    grid = Grid.over(14, 14, 7)
    full = torch.ones(1, 1, 2, 7, 7, dtype=torch.bool)
    assert runs_on_maps("depthwise", torch.zeros(1, 4, 14, 14), full, grid)
    assert not runs_on_maps("depthwise", torch.zeros(1, 4, 14, 14).double(), full, grid)
    assert not runs_on_maps("bottleneck", torch.zeros(1, 4, 14, 14), full, grid)
    assert runs_on_maps("bottleneck", torch.zeros(1, 4, 14, 14).bfloat16(), full, grid)


def test_all_blocks_of_a_branch_count():
    """Of the two blocks one is whole: 3/4 of the cells are more than half of them."""
    grid, x = Grid.over(56, 56, 7), torch.zeros(1, 4, 56, 56)
    assert runs_on_maps("grouped", x, masks_of(49), grid)
    assert not runs_on_maps("grouped", x, masks_of(49)[1:] & masks_of(40)[1:], grid)


@pytest.mark.parametrize(("name", "calls"), [("resnet20", 0), ("mobilenet_v2", 4)])
def test_a_network_runs_as_the_rule_says(name, calls, monkeypatch):
    """Of one image's half of the cells: ResNet's on cells, depthwise ones on maps."""
    network = build_sar(name, 3).eval()
    seen = []
    original = sparse_network.SparseRefinement._on_maps
    monkeypatch.setattr(
        sparse_network.SparseRefinement,
        "_on_maps",
        lambda self, *arguments: seen.append(1) or original(self, *arguments),
    )
    images = torch.randn(1, 3, 32, 32)

    def half(logits: torch.Tensor) -> torch.Tensor:
        masks = torch.zeros_like(logits[:, :, 0], dtype=torch.bool)
        masks[..., ::2] = True
        return masks

    sparse = SparseSAR(network)
    sparse.run(images, half)
    # A map of one column has one cell a row, all selected.
    assert len(seen) == calls
    for execution in ("cells", "maps"):
        seen.clear()
        torch.testing.assert_close(
            SparseSAR(network, execution=execution).run(images, half)[0],
            sparse.run(images, half)[0],
            rtol=1e-4,
            atol=1e-4,
        )


def test_another_execution_is_refused():
    with pytest.raises(ValueError, match="auto, cells, maps, got 'dense'"):
        SparseSAR(build_sar("resnet20", 3), execution="dense")


def test_the_refinement_may_be_moved_and_copied():
    """Weights in the order of kernels are made anew where the network is cast."""
    network = build_sar("mobilenet_v2", 3, cells=ModuleOptions().cells).eval()
    sparse = SparseSAR(network, execution="maps")
    images = torch.randn(1, 3, 32, 32)
    expected = sparse(images)
    torch.testing.assert_close(
        sparse.double().run(images.double())[0].float(), expected, rtol=1e-3, atol=1e-3
    )

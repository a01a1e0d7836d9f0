"""Sparse inference: the masked dense network's numbers, and only the work that masks ask for."""

from __future__ import annotations

import pytest
import torch
from devices import on_kernels
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from anchornet_ext.models.sar import (
    Architecture,
    ModuleOptions,
    SARNetwork,
    SparseSAR,
    Stage,
    build_sar,
    decide,
    mean_activation,
    sar_cost,
    set_activation,
)
from anchornet_ext.models.sar.blocks import Basic, Bottleneck, InvertedResidual
from anchornet_ext.models.sar.grid import Grid
from anchornet_ext.models.sar.selection import select_cells

FAMILIES = {
    "basic": Basic(),
    "bottleneck": Bottleneck(),
    "grouped": Bottleneck(expansion=2, cardinality=4),
    "inverted": InvertedResidual(expansion=2),
}


def tiny_network(family: str, options: ModuleOptions, seed: int = 0) -> SARNetwork:
    """Two small modules, with statistics and weights that make every layer matter."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stages = [Stage(16, 3, 2), Stage(32, 3, 1)]
        architecture = Architecture(FAMILIES[family], "cifar", 8, stages, [Stage(16, 1, 2)])
        network = SARNetwork(architecture, 5, options)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.5)
                nn.init.normal_(module.running_mean, std=0.2)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


class RandomMasks:
    """Masks drawn anew for each module, the same sequence for the same seed."""

    def __init__(self, rate: float, seed: int) -> None:
        self.rate = rate
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, logits: Tensor) -> Tensor:
        shape = logits[..., 0, :, :, :].shape
        return (torch.rand(shape, generator=self.generator) < self.rate).to(logits.device)


@on_kernels
@settings(deadline=None, max_examples=15)
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    groups=st.sampled_from([1, 2, 4]),
    stride=st.sampled_from([2, 4]),
    alpha=st.sampled_from([1, 2]),
    beta=st.sampled_from([1, 2]),
    cells=st.integers(1, 5),
    size=st.tuples(st.integers(5, 22), st.integers(5, 22)),
    batch=st.integers(1, 3),
    rate=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.float64]),
    execution=st.sampled_from(["auto", "cells", "cells", "maps"]),
    seed=st.integers(0, 1000),
)
def test_sparse_and_masked_dense_give_the_same_numbers(
    device, family, groups, stride, alpha, beta, cells, size, batch, rate, dtype, execution, seed
):
    options = ModuleOptions(groups, stride, alpha, beta, cells)
    network = tiny_network(family, options, seed).to(device, dtype)
    sparse = SparseSAR(network, execution=execution)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, *size, generator=generator).to(device, dtype)
    with torch.no_grad():
        expected, dense_masks = network.run(images, RandomMasks(rate, seed))
    got, masks = sparse.run(images, RandomMasks(rate, seed))
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
    assert all(torch.equal(a, b) for a, b in zip(masks, dense_masks, strict=True))


@pytest.mark.parametrize("execution", ["cells", "maps"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_near(dtype, execution):
    network = tiny_network("bottleneck", ModuleOptions(cells=4))
    images = torch.randn(2, 3, 16, 16)
    expected = SparseSAR(network).run(images, RandomMasks(0.5, 1))[0]
    got = SparseSAR(network, dtype=dtype, execution=execution).run(images, RandomMasks(0.5, 1))[0]
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected, rtol=5e-2, atol=1e-1)


@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 1000), order=st.permutations(range(5)), split=st.integers(1, 4))
def test_an_image_does_not_depend_on_the_batch(seed, order, split):
    network = tiny_network("basic", ModuleOptions(cells=4), seed).double()
    images = torch.randn(5, 3, 16, 16, dtype=torch.float64)
    set_activation(network, images, 0.5)
    sparse = SparseSAR(network)
    together, masks = sparse.run(images)
    parts = [sparse.run(images[list(order)][:split]), sparse.run(images[list(order)][split:])]
    apart = torch.cat([logits for logits, _ in parts])
    torch.testing.assert_close(apart, together[list(order)], rtol=1e-10, atol=1e-10)
    for module, mask in enumerate(masks):
        again = torch.cat([of_part[module] for _, of_part in parts], dim=1)
        assert torch.equal(again, mask[:, list(order)])


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("size", [(16, 16), (13, 18)])
def test_the_cost_of_the_masks_is_what_is_executed(family, size):
    """Every multiply-add that torch or `convolve_cells` is asked for, halo and all."""
    network = tiny_network(family, ModuleOptions(cells=4, beta=2)).double()
    sparse = SparseSAR(network)  # in float64 the cells go through torch's operators, which count
    for rate in (0.0, 0.3, 1.0):
        with FlopCounterMode(display=False) as counter:
            _, masks = sparse.run(torch.randn(3, 3, *size).double(), RandomMasks(rate, 1))
        assert counter.get_total_flops() // 2 == sar_cost(network, size).of_masks(masks).sum()


def test_what_no_mask_selects_is_never_read():
    """Weights that are not numbers would reach the logits, also through a product with zero."""
    network = tiny_network("bottleneck", ModuleOptions(cells=4))
    expected = SparseSAR(network).run(torch.ones(2, 3, 16, 16), RandomMasks(0, 1))[0]
    for module in network.sar_modules:
        for conv in (m for m in module.refine.modules() if isinstance(m, nn.Conv2d)):
            nn.init.constant_(conv.weight, float("nan"))
    sparse = SparseSAR(network)
    logits, masks = sparse.run(torch.ones(2, 3, 16, 16), RandomMasks(0, 1))
    assert torch.equal(logits, expected)
    assert (
        sar_cost(network, (16, 16)).of_masks(masks).tolist()
        == [sar_cost(network, (16, 16)).fixed] * 2
    )
    # It does not reach the logits: oneDNN's ReLU makes 0 of what is no number.
    fused: list[Tensor] = []
    sparse.refinements[-1].register_forward_hook(lambda _, __, out: fused.append(out))
    sparse.run(torch.ones(2, 3, 16, 16), RandomMasks(0.5, 1))
    assert fused[0].isnan().all()


@pytest.mark.parametrize("blocks", [(0,), (1,), (0, 1), ()])
def test_blocks_may_be_refined_alone(blocks):
    """A block whose predecessor refined nothing reads zeros, and one that refines all its own."""
    network = tiny_network("basic", ModuleOptions(cells=3))
    images = torch.randn(3, 3, 13, 11)

    def choose(logits: Tensor) -> Tensor:
        masks = torch.zeros_like(logits[:, :, 0], dtype=torch.bool)
        for block in blocks:
            masks[block] = True
        return masks

    with torch.no_grad():
        expected = network.run(images, choose)[0]
    torch.testing.assert_close(
        SparseSAR(network).run(images, choose)[0], expected, rtol=1e-4, atol=1e-4
    )


def test_batch_one_costs_are_the_images_own():
    network = tiny_network("bottleneck", ModuleOptions(cells=4))
    images = torch.randn(4, 3, 16, 16)
    set_activation(network, images, 0.5)
    sparse, cost = SparseSAR(network), sar_cost(network, (16, 16))
    together = cost.of_masks(sparse.run(images)[1])
    alone = [cost.of_masks(sparse.run(images[n : n + 1])[1]).item() for n in range(4)]
    assert together.tolist() == alone
    assert len(set(alone)) > 1  # each image its own


@pytest.mark.parametrize("rate", [0, 0.25, 0.5, 1])
def test_the_activation_is_what_was_asked_for(rate):
    network = build_sar("resnet20", 10, groups=4)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias)
    images = torch.randn(8, 3, 32, 32)
    set_activation(network, images, rate)
    assert network.training
    with torch.no_grad():
        masks = network.eval().run(images, decide)[1]
    for mask in masks:
        got = mask.float().mean((1, 3, 4))  # each block's and group's own
        assert torch.allclose(got, torch.full_like(got, rate), atol=0.02)
    assert mean_activation(masks).mean().item() == pytest.approx(rate, abs=0.02)


def test_wrong_activations_are_refused():
    network = build_sar("resnet20", 10)
    with pytest.raises(ValueError, match=r"got 1\.5"):
        set_activation(network, torch.randn(1, 3, 32, 32), 1.5)
    with pytest.raises(ValueError, match="at least one image"):
        set_activation(network, torch.randn(0, 3, 32, 32), 0.5)


def test_a_sparse_network_stays_in_evaluation_and_leaves_the_original_alone():
    network = build_sar("resnet20", 10)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    sparse = SparseSAR(network)
    assert not sparse.train().training
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in sparse.parameters())
    images = torch.randn(2, 3, 32, 32)
    expected = sparse(images)
    moved = sparse.to(memory_format=torch.channels_last)
    torch.testing.assert_close(moved(images), expected)


def test_an_empty_batch_has_no_results():
    logits, masks = SparseSAR(build_sar("resnet20", 10)).run(torch.randn(0, 3, 32, 32))
    assert logits.shape == (0, 10)
    assert masks[0].shape == (2, 0, 2, 4, 4)


@settings(deadline=None, max_examples=30)
@given(
    shape=st.tuples(*(st.integers(1, 3) for _ in range(5))),
    rate=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
def test_cells_find_their_neighbours(shape, rate, seed):
    """Against loops over all places."""
    blocks, batch, groups, rows, columns = shape
    masks = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < rate
    selected = select_cells(masks)
    assert len(selected) == blocks
    for n, own in enumerate(selected):
        places = [
            (g, b, r, c)
            for g in range(groups)
            for b in range(batch)
            for r in range(rows)
            for c in range(columns)
            if masks[n, b, g, r, c]
        ]
        number = {place: k for k, place in enumerate(places)}
        assert own.counts == [sum(place[0] == g for place in places) for g in range(groups)]
        assert own.owner.tolist() == [g * batch + b for g, b, _, _ in places]
        assert own.local.tolist() == [r * columns + c for _, _, r, c in places]
        around = [
            [number.get((g, b, r + i, c + j), -1) for i in (-1, 0, 1) for j in (-1, 0, 1)]
            for g, b, r, c in places
        ]
        assert own.around.reshape(-1, 9).tolist() == around
        if n == 0:
            assert own.before is None
            assert own.around_before is None
        else:
            assert own.before is not None
            assert own.around_before is not None
            previous = selected[n - 1].slots
            assert own.before.tolist() == [previous[place].item() for place in places]
            carried = [[-1 if k < 0 else own.before[k].item() for k in ring] for ring in around]
            assert own.around_before.reshape(-1, 9).tolist() == carried


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 9))
def test_a_grid_covers_its_map(height, width, cells):
    grid = Grid.over(height, width, cells)
    assert grid.rows <= cells
    assert grid.columns <= cells
    assert 0 <= grid.rows * grid.cell_height - height < grid.cell_height
    assert 0 <= grid.columns * grid.cell_width - width < grid.cell_width
    numbers = torch.arange(grid.rows * grid.columns).view(1, grid.rows, grid.columns)
    spread = grid.spread(numbers)
    assert spread.shape == (1, height, width)
    last = (height - 1) // grid.cell_height * grid.columns + (width - 1) // grid.cell_width
    assert spread[0, 0, 0] == 0
    assert spread[0, -1, -1] == last


@pytest.mark.parametrize("bad", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_a_grid_needs_a_map(bad):
    with pytest.raises(ValueError, match="at least 1"):
        Grid.over(*bad)

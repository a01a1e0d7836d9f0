"""FoldedAnchorNet as one operator: the same as its submodules, and only where it may be."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from anchornet_ext import reference
from anchornet_ext.models import AnchorNet, FoldedAnchorNet, localise


def trained_looking(seed: int, **options: object) -> AnchorNet:
    """An AnchorNet in which no parameter or statistic is what it was initialised to."""
    torch.manual_seed(seed)
    model = AnchorNet(**options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.3, 3)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.uniform_(-0.5, 0.5)
    return model.requires_grad_(False)


def runs_submodules(call: Callable[[], object]) -> bool:
    """Whether `call` reaches a convolution module."""
    with mock.patch.object(nn.Conv2d, "forward", side_effect=nn.Conv2d.forward, autospec=True) as f:
        call()
    return f.called


@given(
    seed=st.integers(0, 2**31 - 1),
    batch=st.integers(0, 3),
    height=st.integers(95, 130),
    width=st.integers(95, 130),
    skip=st.sampled_from(["centre", "top_left"]),
    in_channels=st.sampled_from([1, 3]),
    memory_format=st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
@settings(max_examples=12, deadline=None)
def test_equals_the_submodules_and_the_unfolded_network(
    seed, batch, height, width, skip, in_channels, memory_format
):
    plain = trained_looking(seed, num_classes=7, skip=skip, in_channels=in_channels)
    folded = plain.fold().requires_grad_(False)
    images = torch.randn(batch, in_channels, height, width).to(memory_format=memory_format)
    assert not runs_submodules(lambda: folded(images))
    fused = folded.features(images)
    assert fused.is_contiguous(memory_format=torch.channels_last)
    folded.fused = False
    assert runs_submodules(lambda: folded(images))
    exact = plain.double().features(images.double())
    largest = float(exact.abs().max()) if exact.numel() else 0.0
    for got in (fused, folded.features(images)):
        torch.testing.assert_close(got.double(), exact, rtol=3e-4, atol=1e-5 * largest)


def near_ties(activation_map: Tensor, margin: float) -> Tensor:
    """(B,) whether two activations of an image lie closer together than `margin`."""
    values = activation_map.flatten(1).sort(dim=1).values
    return (values.diff(dim=1) < margin).any(dim=1)


def test_the_same_class_and_patches_as_the_unfolded_network():
    plain = trained_looking(0, num_classes=50)
    folded = plain.fold().requires_grad_(False)
    images = torch.randn(12, 3, 224, 224)
    found = localise(folded, images)
    double = plain.double()
    logits = double(images.double())
    assert torch.equal(found.class_index, logits.argmax(dim=1))
    exact = reference.class_activation_map(
        double.features(images.double()), double.class_weight, found.class_index
    )
    scale = float(exact.abs().max())
    torch.testing.assert_close(found.activation_map.double(), exact, rtol=3e-4, atol=1e-5 * scale)
    index, _, _ = reference.select_patches(exact, 4, 95, 8, 0.3)
    differs = (found.selection.index != index).any(dim=1)
    undecided = near_ties(exact, 4 * float((found.activation_map - exact).abs().max()))
    assert not (differs & ~undecided).any()
    assert not differs.all()


def test_changed_weights_and_modules_count():
    folded = trained_looking(1).fold().requires_grad_(False)
    images = torch.randn(1, 3, 95, 95)
    before = folded.features(images)
    folded.blocks[3].depthwise.conv.weight.mul_(2)
    after = folded.features(images)
    assert not torch.allclose(after, before)
    folded.blocks[6].project.conv = nn.Conv2d(144, 96, 1).requires_grad_(False)
    assert not torch.allclose(folded.features(images), after)
    fused = folded.features(images)
    folded.fused = False
    torch.testing.assert_close(fused, folded.features(images), rtol=3e-4, atol=1e-4)


def test_the_first_modules_may_be_replaced_as_well():
    folded = trained_looking(1).fold().requires_grad_(False)
    other = trained_looking(2).fold().requires_grad_(False)
    images = torch.randn(1, 3, 95, 95)
    expected = other.features(images)
    assert not torch.equal(folded.features(images), expected)
    folded.stem = other.stem
    folded.blocks = other.blocks
    assert torch.equal(folded.features(images), expected)


@torch.no_grad()
def test_a_copy_has_its_own_weights():
    folded = trained_looking(1).fold()
    images = torch.randn(1, 3, 95, 95)
    before = folded.features(images)
    for copied in (copy.deepcopy(folded), pickle.loads(pickle.dumps(folded))):
        assert torch.equal(copied.features(images), before)
        copied.stem.conv.weight.mul_(2)
        assert not torch.allclose(copied.features(images), before)
        assert torch.equal(folded.features(images), before)


@pytest.fixture
def folded() -> FoldedAnchorNet:
    return trained_looking(2, num_classes=5).fold()


IMAGES = torch.randn(1, 3, 95, 95, generator=torch.Generator().manual_seed(0))


def test_gradients_go_through_the_submodules(folded):
    assert runs_submodules(lambda: folded(IMAGES).sum().backward())
    assert folded.stem.conv.weight.grad is not None
    with torch.no_grad():
        assert not runs_submodules(lambda: folded(IMAGES))
    folded.requires_grad_(False)
    assert not runs_submodules(lambda: folded(IMAGES))
    wanted = IMAGES.clone().requires_grad_()
    assert runs_submodules(lambda: folded(wanted).sum().backward())
    assert wanted.grad is not None


@torch.no_grad()
def test_other_dtypes_and_autocast_go_through_the_submodules(folded):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert runs_submodules(lambda: folded(IMAGES))
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        model = folded.to(dtype)
        assert runs_submodules(lambda model=model, dtype=dtype: model(IMAGES.to(dtype)))
        assert model(IMAGES.to(dtype)).dtype == dtype


@torch.no_grad()
def test_hooks_are_called(folded):
    seen: list[int] = []
    handle = folded.blocks[2].register_forward_hook(lambda *_: seen.append(2))
    folded(IMAGES)
    assert seen == [2]
    handle.remove()
    assert not runs_submodules(lambda: folded(IMAGES))


@torch.no_grad()
@pytest.mark.parametrize("place", ["forward_hook", "forward_pre_hook"])
def test_hooks_on_all_modules_are_called(folded, place):
    folded(IMAGES)  # remembers its modules
    seen: list[nn.Module] = []
    register = getattr(nn.modules.module, f"register_module_{place}")
    handle = register(lambda module, *_: seen.append(module))
    try:
        folded(IMAGES)
        assert folded.blocks[2] in seen
        seen.clear()
        fold_anew = copy.deepcopy(folded)
        fold_anew(IMAGES)
        assert fold_anew.blocks[2] in seen
    finally:
        handle.remove()
    assert not runs_submodules(lambda: folded(IMAGES))


def _double(_: nn.Module, weight: Tensor) -> Tensor:
    return 2 * weight


def quantise(model: FoldedAnchorNet) -> FoldedAnchorNet:
    return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})


def parametrise(model: FoldedAnchorNet) -> FoldedAnchorNet:
    doubled = type("Doubled", (nn.Module,), {"forward": _double})()
    conv = model.blocks[2].project.conv
    nn.utils.parametrize.register_parametrization(conv, "bias", doubled)
    return model


def activate_otherwise(model: FoldedAnchorNet) -> FoldedAnchorNet:
    model.blocks[2].expand.activation = nn.Hardswish()
    return model


def leave_out(model: FoldedAnchorNet) -> FoldedAnchorNet:
    model.blocks[5] = nn.Identity()
    return model


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("change", [quantise, parametrise, activate_otherwise, leave_out])
@torch.no_grad()
def test_modules_of_other_types_are_run(folded, change):
    changed = change(folded)
    got = changed.features(IMAGES)
    changed.fused = False
    torch.testing.assert_close(got, changed.features(IMAGES), rtol=0, atol=0)


def test_forward_mode_gradients_are_not_lost(folded):
    folded.requires_grad_(False)
    _, got = torch.func.jvp(folded.features, (IMAGES,), (IMAGES,))
    folded.fused = False
    _, expected = torch.func.jvp(folded.features, (IMAGES,), (IMAGES,))
    assert expected.abs().max() > 0
    torch.testing.assert_close(got, expected)


@torch.no_grad()
def test_export_needs_no_operator_of_ours(folded):
    exported = torch.export.export(folded, (IMAGES,))
    targets = {str(node.target) for node in exported.graph.nodes}
    assert not any("anchornet_ext" in target for target in targets)
    torch.testing.assert_close(exported.module()(IMAGES), folded(IMAGES), rtol=3e-4, atol=1e-4)


@torch.no_grad()
def test_compiled_it_is_still_one_operator(folded):
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(folded, fullgraph=True, backend=backend)
    torch.testing.assert_close(compiled(IMAGES), folded(IMAGES), rtol=0, atol=0)
    (graph,) = graphs
    assert sum("mbconv_chain" in str(node.target) for node in graph.graph.nodes) == 1
    assert not any("conv2d" in str(node.target) for node in graph.graph.nodes)


@torch.no_grad()
def test_without_the_native_library(folded, monkeypatch):
    expected = folded(IMAGES)
    monkeypatch.setattr("anchornet_ext._extension.load_error", ImportError("not built"))
    assert runs_submodules(lambda: folded(IMAGES))
    torch.testing.assert_close(folded(IMAGES), expected, rtol=3e-4, atol=1e-4)

"""What a network was is compared as Python would compare it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from anchornet_ext.models._structure import Contents, CountedTensors, Structure

native = pytest.importorskip("anchornet_ext._C")


def network() -> nn.Sequential:
    inner = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.ReLU())
    return nn.Sequential(inner, nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))


def structure_of(network: nn.Module) -> Structure:
    return Structure((network,), [*network.modules()])


def _changes() -> list[Callable[[nn.Sequential], Any]]:
    def replace_parameter(n: Any) -> None:
        n[2].weight = nn.Parameter(n[2].weight.detach().clone())

    def remove_parameter(n: Any) -> None:
        n[2].bias = None

    def add_parameter(n: Any) -> None:
        n[0][0].bias = nn.Parameter(torch.zeros(4))

    def add_first_parameter(n: Any) -> None:
        n[0][1].register_parameter("slope", nn.Parameter(torch.zeros(1)))

    def exchange_parameters(n: Any) -> None:
        n[2].weight, n[3].weight = n[3].weight, n[2].weight

    def replace_module(n: Any) -> None:
        n[0][1] = nn.ReLU()

    def delete_module(n: Any) -> None:
        del n[3]

    def append_module(n: Any) -> None:
        n[0].append(nn.ReLU())

    def add_first_module(n: Any) -> None:
        n[0][1].add_module("inner", nn.ReLU())

    def reorder(n: Any) -> None:
        n._modules["0"] = n._modules.pop("0")

    def other_class(n: Any) -> None:
        n[0][1].__class__ = nn.SiLU

    def hook(n: Any) -> None:
        n[0][1].register_forward_hook(lambda *_: None)

    def pre_hook(n: Any) -> None:
        n.register_forward_pre_hook(lambda *_: None)

    return [
        replace_parameter, remove_parameter, add_parameter, add_first_parameter,
        exchange_parameters, replace_module, delete_module, append_module, add_first_module,
        reorder, other_class, hook, pre_hook,
    ]  # fmt: skip


@pytest.mark.parametrize("change", _changes(), ids=lambda change: change.__name__)
def test_every_change_is_seen(change: Callable[[nn.Sequential], Any]) -> None:
    changed = network()
    structure = structure_of(changed)
    assert structure.is_as_it_was()
    change(changed)
    assert not structure.is_as_it_was()
    assert structure_of(changed).is_as_it_was() == ("hook" not in change.__name__)
    assert copy.deepcopy(structure) is None


def test_values_and_modes_are_no_part_of_it() -> None:
    one = network()
    structure = structure_of(one)
    one.train().eval().requires_grad_(False).load_state_dict(network().state_dict())
    assert structure.is_as_it_was()
    assert structure.is_on_cpu(torch.float32)
    one[3].half()
    assert structure.is_as_it_was()
    assert not structure.is_on_cpu(torch.float32)
    assert not structure_of(one.to("meta")).is_on_cpu(torch.float32)


def test_hooks_of_all_modules() -> None:
    structure = structure_of(network())
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not structure.is_as_it_was()
    handle.remove()
    assert structure.is_as_it_was()


def test_writing_is_counted() -> None:
    tensors = [torch.zeros(3), torch.zeros(2, dtype=torch.int64)]
    with torch.inference_mode():
        tensors.append(torch.zeros(2))
    counted = CountedTensors(tensors)
    assert counted.are_as_they_were()
    assert not counted.are_as_they_were(torch.float32)
    for step in range(300):  # beyond the numbers that Python keeps one object of
        tensors[1][0] = step
        assert not counted.are_as_they_were()
        counted = CountedTensors(tensors)
        assert counted.are_as_they_were()
    with torch.inference_mode():
        tensors[2].fill_(1)  # nobody counts that
    assert counted.are_as_they_were()


def test_contents() -> None:
    norm = nn.BatchNorm2d(3).eval()
    contents = Contents([norm._parameters, norm._buffers])
    assert contents.are_as_they_were()
    norm.running_mean.add_(1)  # type: ignore[union-attr,operator]
    assert not contents.are_as_they_were()
    contents = Contents([norm._parameters, norm._buffers])
    norm.running_mean = torch.zeros(3)
    assert not contents.are_as_they_were()


def test_wrong_arguments_of_the_native_functions() -> None:
    with pytest.raises(TypeError, match="dictionary"):
        native.are_empty([[]])
    with pytest.raises(TypeError, match="dictionary"):
        native.hold([()], [])
    with pytest.raises(ValueError, match="different lengths"):
        native.have_types([1], [])
    with pytest.raises(ValueError, match="different lengths"):
        native.are_as_they_were([], [1], b"", None)
    with pytest.raises(AttributeError, match="_version"):
        native.are_as_they_were([1], [1], bytes(8), None)
    with pytest.raises(ValueError, match="another number"):
        native.are_as_they_were([1], [1], b"", None)

"""The short cuts that calls of the operators take must not be seen in results."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from anchornet_ext import ops
from anchornet_ext.ops import _calls

CORNERS = torch.tensor([[[0, 1], [2, 0]], [[1, 1], [0, 0]]])  # (N, k, 2)


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> dict[object, Tensor]:
    kept: dict[object, Tensor] = {}
    monkeypatch.setattr(_calls, "_KEPT", kept)
    return kept


def gather(images: Tensor, corners: Tensor = CORNERS) -> Tensor:
    return ops.gather_patches(images, corners, 2, mean=(0.5, 0.25, 0.0), std=(0.5, 2.0, 1.0))


def test_numbers_kept_in_inference_mode_serve_a_gradient(
    nothing_kept: dict[object, Tensor],
) -> None:
    with torch.inference_mode():
        gather(torch.rand(2, 3, 4, 5))
    assert len(nothing_kept) == 3  # mean, std and the image of each patch
    images = torch.rand(2, 3, 4, 5, requires_grad=True)
    gather(images).sum().backward()
    assert images.grad is not None
    assert images.grad[0, 1].unique().tolist() == [0.0, 0.5]


def test_the_same_numbers_of_another_type_are_others() -> None:
    images = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    first = ops.gather_patches(images.float(), CORNERS, 2, mean=[0.1] * 3, std=[0.3] * 3)
    second = ops.gather_patches(images, CORNERS, 2, mean=[0.1] * 3, std=[0.3] * 3)
    plain = ops.gather_patches(images, CORNERS, 2)
    assert torch.equal(second, (plain - 0.1) / 0.3)
    assert not torch.equal(first.double(), second)


def test_nothing_is_kept_of_pretended_tensors(nothing_kept: dict[object, Tensor]) -> None:
    with FakeTensorMode():
        corners = torch.zeros(2, 2, 2, dtype=torch.int64)
        patches = gather(torch.empty(2, 3, 4, 5), corners)
    assert patches.shape == (4, 3, 2, 2)
    assert not nothing_kept
    assert type(gather(torch.rand(2, 3, 4, 5))) is Tensor


def test_nothing_is_kept_of_a_transform(nothing_kept: dict[object, Tensor]) -> None:
    images = torch.rand(2, 3, 4, 5)
    # Refused in the end, but after the statistics were made, which torch.func has wrapped.
    with pytest.raises(NotImplementedError, match="no forward-mode"):
        torch.func.jvp(gather, (images,), (images,))
    assert not nothing_kept
    gather(images)
    assert len(nothing_kept) == 3


def test_what_is_kept_does_not_grow_without_end(
    nothing_kept: dict[object, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_calls, "_MAX_KEPT", 2)
    images = torch.rand(1, 1, 4, 5)
    for value in range(1, 5):
        patches = ops.gather_patches(images, CORNERS[:1, :1], 1, mean=[0.0], std=[value])
        assert patches.item() == (images[0, 0, 0, 1] / value).item()
    assert len(nothing_kept) == 2


def test_gradients_are_there_when_they_are_wanted_and_only_then() -> None:
    images = torch.rand(2, 3, 4, 5, requires_grad=True)
    assert gather(images).requires_grad
    assert not gather(images.detach()).requires_grad
    with torch.no_grad():
        assert not gather(images).requires_grad
    with torch.inference_mode():
        assert gather(images).is_inference()

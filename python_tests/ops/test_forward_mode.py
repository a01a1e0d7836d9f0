"""Forward-mode gradients, which the operators have not, are refused and not taken for zero."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from anchornet_ext import ops

CORNERS = torch.tensor([[0, 1], [2, 3]])
CLASSES = torch.tensor([1, 0])
CELL_WEIGHTS = ops.pack_cells(torch.ones(1, 5, 3, 1, 1), torch.zeros(1, 5))
SLOTS = torch.tensor([[[[0, -1], [1, 0]]]])

CALLS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "gather_patches": (lambda x: ops.gather_patches(x, CORNERS, 4), (2, 3, 9, 9)),
    "resize_images": (lambda x: ops.resize_images(x, 5), (2, 3, 9, 9)),
    "scatter_patches": (lambda x: ops.scatter_patches(x, CORNERS, (2, 3, 9, 9)), (2, 3, 4, 4)),
    "class_activation_map features": (
        lambda x: ops.class_activation_map(x, torch.ones(3, 4), CLASSES),
        (2, 4, 5, 5),
    ),
    "class_activation_map weight": (
        lambda w: ops.class_activation_map(torch.ones(2, 4, 5, 5), w, CLASSES),
        (3, 4),
    ),
    "convolve_cells": (lambda x: ops.convolve_cells(x, CELL_WEIGHTS, [2]), (2, 2, 2, 3)),
    "fuse_cells": (
        lambda x: ops.fuse_cells(torch.ones(1, 3, 2, 2), x, SLOTS, torch.ones(1, 3), (4, 4)),
        (2, 2, 2, 3),
    ),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_a_tangent_is_refused(name: str, requires_grad: bool) -> None:
    call, shape = CALLS[name]
    x = torch.randn(shape, requires_grad=requires_grad)
    with pytest.raises(NotImplementedError, match=f"{name.split()[0]}.* no forward-mode"):
        torch.func.jvp(call, (x.detach(),), (torch.ones(shape),))
    with pytest.raises(NotImplementedError, match="no forward-mode"):
        torch.func.jacfwd(call)(x.detach())
    with forward_ad.dual_level():
        expected = call(x)  # what has no tangent goes on as ever
        dual = forward_ad.make_dual(x, torch.ones(shape))
        with pytest.raises(NotImplementedError, match="no forward-mode"):
            call(dual)
        with torch.no_grad(), pytest.raises(NotImplementedError, match="no forward-mode"):
            call(dual)
    assert torch.equal(expected, call(x))


def test_a_chain_of_blocks_refuses_one_of_its_images_or_weights() -> None:
    block = ops.MBConvBlock(
        *(
            torch.ones(shape)
            for shape in (
                (2, 3, 3, 3),
                (2,),
                (2, 1, 3, 3),
                (2,),
                (1, 2),
                (1,),
                (2, 1),
                (2,),
                (4, 2, 1, 1),
                (4,),
            )
        )
    )
    images = torch.ones(1, 3, 9, 9)
    with pytest.raises(NotImplementedError, match=r"mbconv_chain.* no forward-mode"):
        torch.func.jvp(lambda x: ops.mbconv_chain(x, [block]), (images,), (images,))

    def of_bias(bias: Tensor) -> Tensor:
        return ops.mbconv_chain(images, [block._replace(project_bias=bias)])

    with pytest.raises(NotImplementedError, match="no forward-mode"):
        torch.func.jvp(of_bias, (torch.zeros(4),), (torch.ones(4),))

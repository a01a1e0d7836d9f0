"""Every operator once, on small inputs, against its reference: does this build work here?

For `anchornet doctor`, on machines that have no test suite. Each check raises AssertionError, or
whatever the operator raises, if it does not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import ops, reference


def _normal(*shape: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(device)


def _exact(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def class_activation_map(device: torch.device) -> None:
    """Against Eq. 2."""
    features = _normal(2, 96, 5, 7, device=device)
    weight = _normal(11, 96, device=device)
    class_index = torch.tensor([10, 3], device=device)
    torch.testing.assert_close(
        ops.class_activation_map(features, weight, class_index),
        reference.class_activation_map(features, weight, class_index),
        rtol=3e-4,
        atol=1e-5,
    )


def select_patches(device: torch.device) -> None:
    """The same locations as the reference's, which runs on the CPU."""
    cam = _normal(3, 17, 17, device=device)
    expected = reference.select_patches(cam.cpu(), 4, 95, 8, 0.3)
    for got, wanted in zip(ops.select_patches(cam, 4, 95, 8, 0.3), expected, strict=True):
        _exact(got.cpu(), wanted)


def _places(device: torch.device) -> tuple[Tensor, Tensor]:
    """image_index (3,) and top_left (3, 2) of overlapping 4 x 5 patches in two 9 x 11 images."""
    image_index = torch.tensor([1, 0, 1], device=device)
    return image_index, torch.tensor([[0, 6], [5, 0], [2, 4]], device=device)


def gather_patches(device: torch.device) -> None:
    """Copies are exact."""
    images = _normal(2, 3, 9, 11, device=device)
    image_index, top_left = _places(device)
    _exact(
        ops.gather_patches(images, top_left, (4, 5), image_index),
        reference.gather_patches(images, image_index, top_left, (4, 5)),
    )


def resize_images(device: torch.device) -> None:
    """Sums of sixteen pixels."""
    images = _normal(2, 3, 31, 24, device=device)
    torch.testing.assert_close(
        ops.resize_images(images, (9, 11)),
        reference.resize_images(images, (9, 11)),
        rtol=0,
        atol=1e-4,
    )


def scatter_patches(device: torch.device) -> None:
    """Sums are in a fixed order, so they are exact too."""
    patches = _normal(3, 3, 4, 5, device=device)
    image_index, top_left = _places(device)
    _exact(
        ops.scatter_patches(patches, top_left, (2, 3, 9, 11), image_index),
        reference.scatter_patches(patches, image_index, top_left, (2, 3, 9, 11)),
    )


def scatter_patches_onto(device: torch.device) -> None:
    """Copies are exact."""
    base, patches = _normal(2, 3, 9, 11, device=device), _normal(3, 3, 4, 5, device=device)
    image_index, top_left = _places(device)
    _exact(
        ops.scatter_patches_onto(base, patches, top_left, image_index),
        reference.scatter_patches_onto(base, patches, image_index, top_left),
    )


def exit_step(device: torch.device) -> None:
    """Sums, confidence, prediction and who stays."""
    logits = 3 * _normal(4, 1000, device=device)
    active = torch.tensor([5, 0, 3, 1], device=device)
    running, expected_running = (torch.zeros(6, 1000, device=device) for _ in range(2))
    got = ops.exit_step(running, logits, active, 0.2, temperature=1.5)
    confidence, prediction, stay, num_stay = reference.exit_step(
        expected_running, logits, active, 0.2, temperature=1.5
    )
    _exact(running, expected_running)
    torch.testing.assert_close(got.confidence, confidence, rtol=1e-5, atol=0)
    _exact(got.prediction, prediction)
    _exact(got.active, stay)
    _exact(got.num_active, num_stay)


def mbconv_chain(device: torch.device) -> None:
    """Two blocks: a stem with strides and few channels, and one with a shortcut."""

    def block(channels: int, kernel: int, expanded: int, stride: int) -> ops.MBConvBlock:
        shapes = [(expanded, channels, kernel, kernel), (expanded,), (expanded, 1, 3, 3)]
        shapes += [(expanded,), (3, expanded), (3,), (expanded, 3), (expanded,)]
        shapes += [(20, expanded, 1, 1), (20,)]
        tensors = [_normal(*shape, device=device) / shape[-1] for shape in shapes]
        return ops.MBConvBlock._make([*tensors, stride, stride])

    images = _normal(2, 3, 32, 31, device=device)
    blocks = [block(3, 3, 18, 2), block(20, 1, 50, 1)]
    parameters = [tensor for block in blocks for tensor in block[:10]]
    torch.testing.assert_close(
        ops.mbconv_chain(images, blocks),
        reference.mbconv_chain(images, parameters, [2, 1], [2, 1], True),
        rtol=3e-4,
        atol=1e-4,
    )


def convolve_cells(device: torch.device) -> None:
    """Two segments of 3x3 convolutions over cells with and without neighbours."""
    cells = _normal(3, 4, 4, 5, device=device)
    weights = ops.pack_cells(_normal(2, 6, 5, 3, 3, device=device), _normal(2, 6, device=device))
    neighbours = torch.tensor([[-1, 0, 1, 2, 0, -1, -1, 1, 2], [0, 1, 2, -1, 1, 0, -1, -1, -1]])
    neighbours = neighbours.to(device)
    torch.testing.assert_close(
        ops.convolve_cells(cells, weights, [1, 1], neighbours, activation="relu"),
        reference.convolve_cells(
            cells, neighbours, weights.weight, weights.bias, [1, 1], 6, activation=1
        ),
        rtol=3e-4,
        atol=1e-4,
    )


def convolve_maps(device: torch.device) -> None:
    """A 3x3 convolution of small maps with padding, a sum and a ReLU; it runs on the CPU only."""
    maps, weight = _normal(7, 20, 3, 4, device=device), _normal(70, 20, 3, 3, device=device)
    bias, add = _normal(70, device=device), _normal(7, 70, 3, 4, device=device)
    maps, weight, bias, add = (tensor.cpu() for tensor in (maps, weight, bias, add))
    torch.testing.assert_close(
        ops.convolve_maps(
            maps, ops.pack_maps(weight), bias, padding=(1, 1), add=add, activation="relu"
        ),
        reference.convolve_maps(maps, weight, bias, (1, 1), (1, 1), (1, 1), add, activation=1),
        rtol=3e-4,
        atol=1e-4,
    )


def run_map_program(device: torch.device) -> None:
    """Two convolutions with a sum, and a pooling; it runs on the CPU only."""
    maps = _normal(2, 20, 6, 5, device=device).cpu()
    weights = [_normal(20, 20, 3, 3, device=device).cpu() / 13 for _ in range(2)]
    steps = [
        reference.MapStep("conv", 0, 1, weights[0], padding=(1, 1), relu=True),
        reference.MapStep("conv", 1, 2, weights[1], padding=(1, 1), add=0, relu=True),
        reference.MapStep("max_pool", 2, 3, kernel=(2, 3), stride=(2, 1)),
    ]
    found = ops.run_map_program([maps], ops.pack_map_program(steps, (3, 1)))
    for one, expected in zip(found, reference.run_map_program([maps], steps, (3, 1)), strict=True):
        torch.testing.assert_close(one, expected, rtol=3e-4, atol=1e-4)


def inverted_residuals(device: torch.device) -> None:
    """A convolution with a stride, a block with all parts, a mean and a linear layer; on the CPU
    only."""
    images = _normal(3, 3, 17, 14, device=device).cpu()

    def convolution(*shape: int, stride: int = 1, activation: str = "none") -> ops.Convolution:
        weight = _normal(*shape, device=device).cpu() / shape[1] ** 0.5
        return ops.Convolution(weight / shape[2], weight[:, 0, 0, 0], stride, activation)

    layers: list[ops.Convolution | ops.InvertedResidual | ops.GlobalMean] = [
        convolution(20, 3, 3, 3, stride=2, activation="relu"),
        ops.InvertedResidual(
            convolution(50, 20, 1, 1, activation="hardswish"),
            convolution(50, 1, 5, 5, activation="silu"),
            ops.SqueezeExcitation(
                _normal(6, 50, device=device).cpu() / 7,
                None,
                _normal(50, 6, device=device).cpu() / 2,
                None,
            ),
            convolution(20, 50, 1, 1),
            residual=True,
        ),
        ops.GlobalMean(),
        convolution(30, 20, 1, 1),
    ]
    torch.testing.assert_close(
        ops.inverted_residuals(images, ops.pack_layers(layers)),
        reference.inverted_residuals(images, layers),
        rtol=3e-4,
        atol=1e-4,
    )


def fuse_cells(device: torch.device) -> None:
    """A map of two rows of cells, one cell missing, the last row reaching beyond the map."""
    base, cells = _normal(1, 6, 4, 3, device=device), _normal(3, 4, 3, 6, device=device)
    slots = torch.tensor([[[[0, 2], [-1, 1]]]], device=device)
    a = _normal(1, 6, device=device)
    torch.testing.assert_close(
        ops.fuse_cells(base, cells, slots, a, (7, 6)),
        reference.fuse_cells(base, cells, slots, a, 7, 6),
        rtol=1e-5,
        atol=1e-5,
    )


#: operator -> its check on a device
CHECKS: dict[str, Callable[[torch.device], None]] = {
    check.__name__: check
    for check in (
        class_activation_map,
        select_patches,
        gather_patches,
        resize_images,
        scatter_patches,
        scatter_patches_onto,
        exit_step,
        mbconv_chain,
        convolve_cells,
        convolve_maps,
        run_map_program,
        inverted_residuals,
        fuse_cells,
    )
}

"""A whole convolutional network of MBConv blocks at once, as AnchorNet is one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from anchornet_ext import _extension, reference
from anchornet_ext.ops._calls import refuse_tangents
from anchornet_ext.reference.mbconv_chain import PARAMETERS

_NAME = "anchornet_ext::mbconv_chain"


class MBConvBlock(NamedTuple):
    """What a block is made of; batch norm is folded into the convolutions. All float32."""

    conv_weight: Tensor
    """(E, C, k, k): 1x1, the expansion, or larger, where the expansion is the network's stem."""
    conv_bias: Tensor
    """(E,)"""
    depthwise_weight: Tensor
    """(E, 1, 3, 3)"""
    depthwise_bias: Tensor
    """(E,)"""
    squeeze_weight: Tensor
    """(S, E): the first linear layer of squeeze-and-excitation."""
    squeeze_bias: Tensor
    """(S,)"""
    excite_weight: Tensor
    """(E, S): the second."""
    excite_bias: Tensor
    """(E,)"""
    project_weight: Tensor
    """(C', E, 1, 1)"""
    project_bias: Tensor
    """(C',)"""
    stride: int = 1
    """Of the first convolution."""
    depthwise_stride: int = 1
    """1 or 2."""


def mbconv_chain(
    images: Tensor,
    blocks: Sequence[MBConvBlock],
    skip: Literal["centre", "top_left"] = "centre",
) -> Tensor:
    """MBConv blocks without padding, one after the other.

    Each is a convolution, SiLU, a depthwise 3x3 convolution, SiLU, channel gates from the mean over
    the map (squeeze-and-excitation), and a 1x1 convolution. A block other than the first that keeps
    strides at 1 and the number of channels adds its input, cropped to the size of its output.

    The CPU kernel takes one image at a time through all blocks, so that what is between them stays
    in the processor's cache; the arithmetic is float32. There is no CUDA kernel: on a CUDA device
    this runs torch's own convolutions.

    Args:
        images: (B, C, H, W) float32; contiguous and channels_last are read as they lie, other
            strides cost a copy.
        blocks: at least one; `MBConvBlock` gives the shapes.
        skip: what the shortcut keeps of its input: all but one row and column of each side
            ("centre"), or all but the last two ("top_left").

    Returns:
        (B, C', h, w) float32 in channels_last. An image's values do not depend on the others or on
        the number of threads. Differentiable once, by torch's own convolutions.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: shapes or devices do not fit together, the images are too small, or `skip` is
            neither; the message holds the value.
        ImportError: the native library is missing.
        NotImplementedError: an argument has a forward-mode gradient.
    """
    _check_arguments(images, blocks, skip)
    _extension.require()
    parameters = [parameter for block in blocks for parameter in block[:PARAMETERS]]
    refuse_tangents("mbconv_chain", (images, *parameters))
    strides = [block.stride for block in blocks]
    depthwise_strides = [block.depthwise_stride for block in blocks]
    result: Tensor = torch.ops.anchornet_ext.mbconv_chain(
        images, parameters, strides, depthwise_strides, skip == "centre"
    )
    return result


def _check_arguments(images: Tensor, blocks: Sequence[MBConvBlock], skip: str) -> None:
    _check_tensor("images", images, images)
    if images.ndim != 4 or images.shape[1] == 0:
        raise ValueError(f"images must be (B, C, H, W) with C > 0, got {tuple(images.shape)}")
    if skip not in ("centre", "top_left"):
        raise ValueError(f"skip must be 'centre' or 'top_left', got {skip!r}")
    if len(blocks) == 0:
        raise ValueError("there must be at least one block, got none")
    channels, *size = images.shape[1:]
    for b, block in enumerate(blocks):
        if not isinstance(block, MBConvBlock):
            raise TypeError(f"blocks[{b}] must be an MBConvBlock, got {type(block).__name__}")
        _check_block(f"blocks[{b}]", block, images, channels)
        kernel = block.conv_weight.shape[2]
        smallest = kernel + 2 * block.stride  # leaves 3 x 3 to the depthwise convolution
        if min(size) < smallest:
            raise ValueError(
                f"the input of blocks[{b}] must be at least {smallest}x{smallest}, got "
                f"{size[0]}x{size[1]}; images are {tuple(images.shape)}"
            )
        channels = block.project_weight.shape[0]
        size = _size_after(block.conv_weight, block.stride, block.depthwise_stride, size)


def _check_tensor(name: str, value: object, images: Tensor) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if value.dtype != torch.float32:
        raise TypeError(f"{name} must be float32, got {value.dtype}")
    if value.device != images.device:
        raise ValueError(f"{name} is on {value.device} and images on {images.device}")


def _check_block(name: str, block: MBConvBlock, images: Tensor, channels: int) -> None:
    for field, value in zip(block._fields[:PARAMETERS], block, strict=False):
        _check_tensor(f"{name}.{field}", value, images)
    for field in ("stride", "depthwise_stride"):
        value = getattr(block, field)
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}.{field} must be an int, got {value!r}")
    if block.stride < 1:
        raise ValueError(f"{name}.stride must be at least 1, got {block.stride}")
    if block.depthwise_stride not in (1, 2):
        raise ValueError(f"{name}.depthwise_stride must be 1 or 2, got {block.depthwise_stride}")
    # The sizes that nothing else determines, 1 where the tensor has too few dimensions to tell.
    expanded, _, kernel, _ = (*block.conv_weight.shape, 1, 1, 1, 1)[:4]
    squeezed, *_ = (*block.squeeze_weight.shape, 1)
    out, *_ = (*block.project_weight.shape, 1)
    expected = (
        ("E, C, k, k", (expanded, channels, kernel, kernel)),
        ("E", (expanded,)),
        ("E, 1, 3, 3", (expanded, 1, 3, 3)),
        ("E", (expanded,)),
        ("S, E", (squeezed, expanded)),
        ("S", (squeezed,)),
        ("E, S", (expanded, squeezed)),
        ("E", (expanded,)),
        ("C', E, 1, 1", (out, expanded, 1, 1)),
        ("C'", (out,)),
    )
    for field, (meaning, shape) in zip(block._fields, expected, strict=False):
        got = tuple(getattr(block, field).shape)
        if got != shape or 0 in got:
            raise ValueError(
                f"{name}.{field} must be ({meaning}), none of them 0, here {shape}, got {got}"
            )


def _size_after(conv: Tensor, stride: int, deep: int, size: Sequence[int]) -> list[int]:
    """Height and width of a block's output."""
    return [((n - conv.shape[2]) // stride + 1 - 3) // deep + 1 for n in size]


def _fake(
    images: Tensor,
    parameters: Sequence[Tensor],
    strides: Sequence[int],
    depthwise_strides: Sequence[int],
    centre_skip: bool,
) -> Tensor:
    size: Sequence[int] = images.shape[2:]
    for conv, stride, deep in zip(
        parameters[::PARAMETERS], strides, depthwise_strides, strict=True
    ):
        size = _size_after(conv, stride, deep, size)
    return torch.empty(
        (images.shape[0], parameters[-1].shape[0], *size),
        dtype=images.dtype,
        device=images.device,
        memory_format=torch.channels_last,
    )


def _cuda(*arguments: Any) -> Tensor:
    return reference.mbconv_chain(*arguments).contiguous(memory_format=torch.channels_last)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    images, parameters, *ctx.settings = inputs
    ctx.save_for_backward(images, *parameters)


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    with torch.enable_grad():
        images, *parameters = (t.detach().requires_grad_() for t in ctx.saved_tensors)
        output = reference.mbconv_chain(images, parameters, *ctx.settings)
        of_images, *of_parameters = torch.autograd.grad(output, (images, *parameters), grad)
    return of_images, of_parameters, None, None, None


if _extension.available():
    torch.library.register_fake(_NAME, _fake)
    torch.library.register_kernel(_NAME, "cuda", _cuda)
    torch.library.register_autograd(_NAME, _backward, setup_context=_setup_context)

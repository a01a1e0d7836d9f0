"""Specification of `anchornet_ext.ops.mbconv_chain`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import conv2d, linear, silu

#: Tensors of one block: weight and bias of five layers.
PARAMETERS = 10


def mbconv_chain(
    images: Tensor,
    parameters: Sequence[Tensor],
    strides: Sequence[int],
    depthwise_strides: Sequence[int],
    centre_skip: bool,
) -> Tensor:
    """MBConv blocks one after the other, from the operator's own arguments: `parameters` holds the
    ten tensors of the first block, then those of the second and so on."""
    x = images
    for b, (stride, depthwise_stride) in enumerate(zip(strides, depthwise_strides, strict=True)):
        block = parameters[b * PARAMETERS : (b + 1) * PARAMETERS]
        (conv, conv_bias, depthwise, depthwise_bias, squeeze, squeeze_bias) = block[:6]
        (excite, excite_bias, project, project_bias) = block[6:]
        y = silu(conv2d(x, conv, conv_bias, stride))
        y = conv2d(y, depthwise, depthwise_bias, depthwise_stride, groups=len(depthwise))
        y = silu(y)
        gates = linear(silu(linear(y.mean(dim=(2, 3)), squeeze, squeeze_bias)), excite, excite_bias)
        y = conv2d(y * gates.sigmoid()[:, :, None, None], project, project_bias)
        keeps_size = conv.shape[2] == stride == depthwise_stride == 1
        if b > 0 and keeps_size and x.shape[1] == y.shape[1]:
            y = y + (x[:, :, 1:-1, 1:-1] if centre_skip else x[:, :, :-2, :-2])
        x = y
    return x

"""The activation map of one class per image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from anchornet_ext import _extension

from ._calls import call

_NAME = "anchornet_ext::class_activation_map"
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def class_activation_map(
    features: Tensor, weight: Tensor, class_index: Tensor, *, validate: bool = False
) -> Tensor:
    """How much each location of a feature map speaks for one class (Eq. 2 of the paper).

    ``map[b, y, x] = sum_c weight[class_index[b], c] * features[b, c, y, x]``

    One row of `weight` is read per image and the sum over channels is taken in one pass: neither
    the maps of the other classes (B, N, h, w) nor the weighted features (B, C, h, w) are stored.

    Args:
        features: (B, C, h, w) float32, float64, float16 or bfloat16, of any strides; contiguous and
            channels_last are read at full speed.
        weight: (N, C) of the linear classifier, any of these dtypes, not necessarily that of
            `features`; any strides.
        class_index: (B,) int64, the class of each image, in [0, N).
        validate: also check the values of `class_index` on a CUDA device, which waits for it.
            Without it the CUDA kernel uses the nearest class that exists. On the CPU they are
            always checked.

    Returns:
        (B, h, w), contiguous: float64 for float64 `features`, otherwise float32, which is also what
        the sum is accumulated in. Under autocast, too, the operator takes `features` as they are.
        Differentiable, twice as well, with respect to `features` and `weight`.

    Raises:
        TypeError: an argument is no tensor or has the wrong dtype.
        ValueError: shapes or devices do not fit together; with `validate`, a class out of range.
        RuntimeError: a class out of range on the CPU, found by the kernel before it reads `weight`.
        ImportError: the native library is missing or has no kernels for this device.
    """
    _check_arguments(features, weight, class_index)
    if validate:
        _check_classes(class_index, weight.shape[0])
    _extension.require_device(features.device)
    op = torch.ops.anchornet_ext.class_activation_map.default
    result: Tensor = call(op, features, weight, class_index)
    return result


def _check_arguments(features: Tensor, weight: Tensor, class_index: Tensor) -> None:
    arguments = {"features": features, "weight": weight, "class_index": class_index}
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    for name, value in (("features", features), ("weight", weight)):
        if value.dtype not in _DTYPES:
            raise TypeError(
                f"{name} must be float32, float64, float16 or bfloat16, got {value.dtype}"
            )
    if class_index.dtype != torch.int64:
        raise TypeError(f"class_index must be int64, got {class_index.dtype}")
    if features.ndim != 4:
        raise ValueError(f"features must be (B, C, h, w), got shape {tuple(features.shape)}")
    if weight.ndim != 2 or weight.shape[1] != features.shape[1]:
        raise ValueError(
            f"weight must be (N, C) with C = {features.shape[1]} as in features, "
            f"got shape {tuple(weight.shape)}"
        )
    if class_index.ndim != 1 or class_index.shape[0] != features.shape[0]:
        raise ValueError(
            f"class_index must be (B,) with B = {features.shape[0]} as in features, "
            f"got shape {tuple(class_index.shape)}"
        )
    if weight.shape[0] == 0 and features.shape[0] > 0:
        raise ValueError(f"weight has no rows to choose from: shape {tuple(weight.shape)}")
    if not features.device == weight.device == class_index.device:
        raise ValueError(
            "features, weight and class_index must be on one device, got "
            f"{features.device}, {weight.device} and {class_index.device}"
        )


def _check_classes(class_index: Tensor, num_classes: int) -> None:
    wrong = ((class_index < 0) | (class_index >= num_classes)).nonzero()
    if len(wrong):
        b = int(wrong[0])
        raise ValueError(f"class_index[{b}] is {int(class_index[b])}, outside [0, {num_classes})")


def _output_dtype(features: Tensor) -> torch.dtype:
    return torch.promote_types(features.dtype, torch.float32)


def _fake(features: Tensor, weight: Tensor, class_index: Tensor) -> Tensor:
    batch, _, height, width = features.shape
    return features.new_empty((batch, height, width), dtype=_output_dtype(features))


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    # The gradient of each factor needs only the other one.
    features, weight, class_index = inputs
    need_features, need_weight = ctx.needs_input_grad[:2]
    ctx.save_for_backward(
        features if need_weight else None, weight if need_features else None, class_index
    )
    ctx.num_classes = weight.shape[0]
    ctx.dtypes = features.dtype, weight.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    # Ordinary differentiable operators, so that the gradient has a gradient.
    features, weight, class_index = ctx.saved_tensors
    features_dtype, weight_dtype = ctx.dtypes
    classes = class_index.clamp(0, max(ctx.num_classes - 1, 0))  # as the CUDA kernel does
    grad_features = grad_weight = None
    if ctx.needs_input_grad[0]:
        rows = weight[classes].to(grad.dtype)  # (B, C)
        grad_features = (rows[:, :, None, None] * grad[:, None]).to(features_dtype)
    if ctx.needs_input_grad[1]:
        by_image = torch.einsum("bhw,bchw->bc", grad, features.to(grad.dtype))
        empty = by_image.new_zeros((ctx.num_classes, by_image.shape[1]))
        grad_weight = empty.index_add(0, classes, by_image).to(weight_dtype)
    return grad_features, grad_weight, None


if _extension.available():
    torch.library.register_fake(_NAME, _fake)
    torch.library.register_autograd(_NAME, _backward, setup_context=_setup_context)

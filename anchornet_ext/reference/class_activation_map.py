"""Specification of `anchornet_ext.ops.class_activation_map`."""

from __future__ import annotations

import torch
from torch import Tensor


def class_activation_map(features: Tensor, weight: Tensor, class_index: Tensor) -> Tensor:
    """M_n(x, y) = sum_c w_{n,c} X_c(x, y), with n = class_index[b] for image b (Eq. 2)."""
    accumulate = torch.promote_types(features.dtype, torch.float32)
    rows = weight[class_index].to(accumulate)  # (B, C)
    return (rows[:, :, None, None] * features.to(accumulate)).sum(dim=1)  # (B, h, w)

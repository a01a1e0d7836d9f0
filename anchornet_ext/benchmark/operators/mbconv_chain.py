"""Cases of `mbconv_chain`: AnchorNet's features."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from anchornet_ext import reference
from anchornet_ext.models import AnchorNet
from anchornet_ext.models.anchornet import BLOCKS, STEM_STRIDE, FoldedAnchorNet
from anchornet_ext.models.macs import count_macs

from ..harness import Case, Contenders, Options, Work
from ..networks import realistic_anchor
from .case import operator_case
from .setting import LAYOUTS, OURS, batches_and_caches, sizes, wanted


def cases(options: Options) -> Iterator[Case]:
    if not wanted(options, torch.float32):
        return
    for size in sizes(options):
        macs = _macs(size)
        for batch, cold in batches_and_caches(options, (1, 8, 32)):
            for layout in LAYOUTS:
                yield operator_case(
                    "mbconv_chain",
                    {"size": size, "dtype": "float32", "layout": layout},
                    partial(_build, batch, size, layout, options.device),
                    batch=batch,
                    cold=cold,
                    work=Work(read=batch * 3 * size**2 * 4, macs=batch * macs),
                    facts={"macs": macs},
                    over=("modules", "unfolded"),
                )


def _macs(size: int) -> int:
    """Of the folded network without its classifier."""
    with torch.device("meta"):
        folded = FoldedAnchorNet(1)
    return count_macs(folded, (3, size, size)) - folded.feature_channels


def _build(batch: int, size: int, layout: str, device: torch.device) -> Contenders:
    unfolded: AnchorNet = realistic_anchor(device)
    fused, folded = unfolded.fold(), unfolded.fold()
    folded.fused = False
    images = torch.randn(batch, 3, size, size, device=device)
    images = images.contiguous(memory_format=LAYOUTS[layout])
    # In the operator's order: the stem is the first block's expansion.
    parameters = [*fused.stem.parameters(), *fused.blocks.parameters()]
    strides = [STEM_STRIDE] + [1] * (len(BLOCKS) - 1)
    depthwise_strides = [block.stride for block in BLOCKS]
    return {
        OURS: lambda: fused.features(images),
        "reference": lambda: reference.mbconv_chain(
            images, parameters, strides, depthwise_strides, fused.skip == "centre"
        ),
        "modules": lambda: folded.features(images),
        "unfolded": lambda: unfolded.features(images),
    }

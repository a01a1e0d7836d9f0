"""What the operators' cases have in common: AnchorNet's numbers, and what is varied."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from anchornet_ext.models import AnchorNet

from ..harness import Options

OURS = "ours"
PATCH_SIZE, STRIDE = AnchorNet.patch_size, AnchorNet.stride
NUM_PATCHES, IOU_THRESHOLD = 4, 0.3
NUM_CLASSES = 1000
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CACHES = ("warm", "cold")
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def batches_and_caches(
    options: Options, usual: Sequence[int], quick: int = 2
) -> Iterator[tuple[int, bool]]:
    """(batch, whether its caches are cold): small batches leave little to be cold."""
    batches = options.batches or ((quick,) if options.quick else tuple(usual))
    caches = getattr(options.arguments, "caches", None) or (CACHES[:1] if options.quick else CACHES)
    for batch in batches:
        if "warm" in caches:
            yield batch, False
    if "cold" in caches:
        yield max(batches), True


def sizes(options: Options) -> tuple[int, ...]:
    """Sides of the images, in pixels."""
    return options.sizes or ((128,) if options.quick else (224,))


def patches_and_images(options: Options) -> tuple[int, ...]:
    """Sides of what the backbone sees: a patch, a whole image."""
    return options.sizes or ((PATCH_SIZE,) if options.quick else (PATCH_SIZE, 224))


def grid_side(size: int) -> int:
    """Locations along a side of AnchorNet's map."""
    return (size - PATCH_SIZE) // STRIDE + 1


def floats(options: Options) -> list[torch.dtype]:
    """Those of the floating-point types that were asked for; all where nothing was."""
    return [dtype for dtype in FLOATS if wanted(options, dtype)]


def wanted(options: Options, dtype: torch.dtype) -> bool:
    return options.dtypes is None or dtype in options.dtypes


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def places(batch: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """image_index (M,) and top_left (M, 2) of four patches an image, on AnchorNet's grid."""
    generator = torch.Generator().manual_seed(0)
    count = batch * NUM_PATCHES
    cells = torch.randint(0, grid_side(size), (count, 2), generator=generator)
    index = torch.arange(batch).repeat_interleave(NUM_PATCHES)
    return index.to(device), (STRIDE * cells).to(device)

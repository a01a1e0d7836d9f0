"""Images, places and devices for the tests of gather_patches and scatter_patches."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
FORMATS = (torch.contiguous_format, torch.channels_last)
LAYOUTS = (
    "contiguous",
    "channels_last",
    "window",  # rows and columns of a larger image
    "window channels_last",
    "first channels channels_last",  # RGB of RGBA
    "every other column",
    "transposed",
)


def random_images(
    size: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator | None = None
) -> Tensor:
    if dtype == torch.uint8:
        return torch.randint(0, 256, size, dtype=dtype, generator=generator)
    return torch.randn(size, generator=generator, dtype=torch.float64).to(dtype)


def lay_out(x: Tensor, layout: str) -> Tensor:
    """Equal to `x`, with strides as a caller's slice of something larger may have them.

    What surrounds the slice would be seen in any result that took it for a part of the image.
    """
    n, c, h, w = x.shape
    poison = 77 if x.dtype == torch.uint8 else float("nan")

    def inside(size: tuple[int, ...], channels_last: bool, *where: Any) -> Tensor:
        larger = torch.full(size, poison, dtype=x.dtype, device=x.device)
        if channels_last:
            larger = larger.contiguous(memory_format=torch.channels_last)
        view = larger[where]
        view.copy_(x)
        return view

    window = (slice(None), slice(None), slice(2, h + 2), slice(1, w + 1))
    if layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "window":
        return inside((n, c, h + 3, w + 2), False, *window)
    if layout == "window channels_last":
        return inside((n, c, h + 3, w + 2), True, *window)
    if layout == "first channels channels_last":
        return inside((n, c + 1, h, w), True, slice(None), slice(c))
    if layout == "every other column":
        return inside((n, c, h, 2 * w), False, ..., slice(None, None, 2))
    assert layout == "transposed"
    return x.transpose(2, 3).contiguous().transpose(2, 3)


def spread(index: Tensor) -> Tensor:
    """Equal to `index`, as a part of something larger: strides other than those of a new tensor."""
    larger = index.new_full([2 * n + 1 for n in index.shape], -9)
    view = larger[tuple(slice(1, None, 2) for _ in index.shape)]
    view.copy_(index)
    return view


@st.composite
def patch_places(
    draw: st.DrawFn, size: tuple[int, int, int], patch: tuple[int, int], max_patches: int = 6
) -> tuple[Tensor, Tensor]:
    """image_index (M,) and top_left (M, 2) inside of (N, H, W); patches may overlap or repeat."""
    n, h, w = size
    place = st.tuples(
        st.integers(0, n - 1), st.integers(0, h - patch[0]), st.integers(0, w - patch[1])
    )
    places = draw(st.lists(place, max_size=max_patches))
    table = torch.tensor(places, dtype=torch.int64).reshape(-1, 3)
    image_index, top_left = table[:, 0].contiguous(), table[:, 1:].contiguous()
    return (
        (spread(image_index), spread(top_left)) if draw(st.booleans()) else (image_index, top_left)
    )


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int, int, int, int, int]:
    """N, C, H, W and a patch's height and width, none of them square by habit."""
    n, c = draw(st.integers(1, 3)), draw(st.integers(1, 5))
    h, w = draw(st.integers(1, 12)), draw(st.integers(1, 25))
    return n, c, h, w, draw(st.integers(1, h)), draw(st.integers(1, w))


def is_in_format(x: Tensor, memory_format: torch.memory_format) -> bool:
    return x.is_contiguous(memory_format=memory_format)


# ---- places of three patches of 3 x 4 in two images of 8 x 9, and what is wrong with others ----

CORNERS = torch.tensor([[0, 0], [1, 2], [3, 1]])
INDEX = torch.tensor([0, 1, 1])


def corners_with(m: int, row: int, column: int) -> Tensor:
    corners = CORNERS.clone()
    corners[m] = torch.tensor([row, column])
    return corners


#: Name -> (arguments, error, what it says).
BAD_PLACES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "top_left shape": ({"top_left": CORNERS[:, :1]}, ValueError, r"\(3, 1\)"),
    "top_left device": ({"top_left": CORNERS.to("meta")}, ValueError, "meta"),
    "index dtype": ({"image_index": INDEX.int()}, TypeError, "torch.int32"),
    "index shape": ({"image_index": INDEX[None]}, ValueError, r"\(1, 3\)"),
    "index low": ({"image_index": torch.tensor([0, -1, 0])}, ValueError, "patch 1 .* -1"),
    "index high": ({"image_index": torch.tensor([0, 0, 2])}, ValueError, "patch 2 .* 2, but"),
    "row low": ({"top_left": corners_with(1, -1, 0)}, ValueError, r"patch 1 .*\(-1, 0\).*\(3, 4\)"),
    "row high": ({"top_left": corners_with(2, 6, 0)}, ValueError, r"patch 2 .*\(6, 0\).*\(8, 9\)"),
    "column low": ({"top_left": corners_with(0, 0, -2)}, ValueError, r"patch 0 .*\(0, -2\)"),
    "column high": ({"top_left": corners_with(0, 5, 6)}, ValueError, r"patch 0 .*\(5, 6\)"),
    "row wraps": ({"top_left": corners_with(0, 2**63 - 1, 0)}, ValueError, "patch 0"),
    "column wraps": ({"top_left": corners_with(0, 0, -(2**63))}, ValueError, "patch 0"),
}

"""What every network asks of a batch of images."""

from __future__ import annotations

from torch import Tensor


def require_images(images: Tensor) -> None:
    """Makes sure that images are a tensor (B, 3, H, W); B may be 0.

    Raises:
        TypeError: no tensor.
        ValueError: another shape.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor, got {type(images).__name__}")
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")


def require_normalised_images(images: Tensor) -> None:
    """As `require_images`, and of a floating point type.

    Raises:
        ValueError: another shape.
        TypeError: another type.
    """
    require_images(images)
    if not images.is_floating_point():
        raise TypeError(f"images must be floating point and normalised, got {images.dtype}")

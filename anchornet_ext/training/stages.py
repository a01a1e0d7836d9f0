"""What the networks of AnchorNet's second stage see (section 3.5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from anchornet_ext.models import AnchorNet, FoldedAnchorNet, localise
from anchornet_ext.models.localise import random_places
from anchornet_ext.ops import gather_patches

from .task import Task


class GlanceTask(Task):
    """The network sees the whole photo, resized to a small square."""

    def inputs(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        size = (self.config.size, self.config.size)
        if tuple(images.shape[2:]) == size:
            return super().inputs(images, labels)
        # Resizing and normalising commute (the weights of the resampling sum to 1), and
        # normalising the small image is cheaper.
        small = nn.functional.interpolate(
            images.float(), size=size, mode="bicubic", align_corners=True
        )
        return self.preprocessing.normalise(small), labels


class FocusTask(Task):
    """The network sees the patches of a photo that the frozen AnchorNet localises.

    Without an AnchorNet they are drawn by chance: the comparison of section 4.3. Inputs are ordered
    by photo, `num_patches` each; the label is repeated.
    """

    anchor: FoldedAnchorNet | None
    num_patches: int
    iou_threshold: float

    def inputs(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        patches = gather_patches(
            images,
            self._places(images),
            AnchorNet.patch_size,
            mean=self.preprocessing.mean,
            std=self.preprocessing.std,
            dtype=torch.float32,
        )
        return patches, labels.repeat_interleave(self.num_patches)

    def _places(self, images: Tensor) -> Tensor:
        """(B, num_patches, 2), (row, column)."""
        if self.anchor is None:
            size = (images.shape[2], images.shape[3])
            # From the global stream, which the loop seeds at each epoch.
            places = random_places(len(images), self.num_patches, size, AnchorNet.patch_size)
            return places.to(images.device)
        # Not in lower precision: these are to be the patches that inference will find.
        with torch.autocast(images.device.type, enabled=False):
            found = localise(
                self.anchor,
                self.preprocessing.normalise(images),
                self.num_patches,
                self.iou_threshold,
            )
        return found.selection.top_left

    def count_correct(self, output: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """Counts photos, by the sum of their patches' logits: what the classifier will use."""
        summed = output.float().view(-1, self.num_patches, output.shape[1]).sum(1)  # (B, n)
        return super().count_correct(summed, labels[:: self.num_patches])

"""Small networks with random weights for the tests of the inference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from anchornet_ext.inference import TwoStageClassifier
from anchornet_ext.models import AnchorNet

CLASSES = 5


class TinyNetwork(nn.Module):
    """A few strided convolutions: fast, and different for every crop of noise."""

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, 8, 5, stride=4),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 5, stride=4),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(16, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.convolutions(images).mean(dim=(2, 3)))
        return out


def tiny_classifier(
    seed: int = 0, *, dtype: torch.dtype = torch.float32, **options: Any
) -> TwoStageClassifier:
    """A real AnchorNet with tiny networks, of weights such that confidences are spread out."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = [AnchorNet(CLASSES), TinyNetwork(), TinyNetwork()]
        for network in networks[1:]:
            # Fresh networks are all but undecided: confidences would all be 1/n.
            network.classifier.weight.data.mul_(30)
    return TwoStageClassifier(*networks, **options).eval().to(dtype)


def noise(
    count: int, size: tuple[int, int], seed: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Images of coarse and fine noise with differing contrast, (count, 3, *size)."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 6, 6, generator=generator, dtype=dtype)
    coarse = nn.functional.interpolate(coarse, size=size, mode="nearest") if count else coarse
    if not count:
        return torch.empty(0, 3, *size, dtype=dtype)
    fine = torch.randn(count, 3, *size, generator=generator, dtype=dtype)
    contrast = torch.rand(count, 1, 1, 1, generator=generator, dtype=dtype) * 3
    return (coarse + 0.3 * fine) * contrast

"""The ResNets for images of 32 x 32 (He et al., section 4.2), plain, to compare with."""

from __future__ import annotations

from torch import Tensor, nn

from .sar.blocks import Basic, Layer, Shape, initialise


class CifarResNet(nn.Module):
    """A 3x3 convolution, three stages of basic blocks with 16, 32 and 64 channels, a classifier.

    Where the size changes, the shortcut is a 1x1 convolution.

    Args:
        depth: 6 n + 2, n blocks in each stage: 20, 32, 44, 56, 110.
        num_classes: n.
        width: by which all channels are more.

    Raises:
        ValueError: a depth that is not 6 n + 2, or a number below 1.
    """

    def __init__(self, depth: int, num_classes: int, width: int = 1) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth must be 8, 14, 20, 26, 32, ..., got {depth}")
        for name, value in (("num_classes", num_classes), ("width", width)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.num_classes = num_classes
        channels = 16 * width
        blocks: list[nn.Module] = [Layer(3, channels, 3)]
        for stage in range(3):
            for n in range(depth // 6):
                outputs = 16 * width * 2**stage
                stride = 2 if stage and n == 0 else 1
                blocks.append(Basic().build(Shape(channels, outputs, stride)))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.classifier = nn.Linear(channels, num_classes)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) to logits (B, n)."""
        logits: Tensor = self.classifier(self.blocks(images).mean((2, 3)))
        return logits

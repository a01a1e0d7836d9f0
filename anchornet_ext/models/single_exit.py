"""Any classification network as one with a single exit, at its end."""

from __future__ import annotations

from torch import Tensor, nn

from anchornet_ext._images import require_normalised_images

from .exits import Progress
from .macs import count_macs


class SingleExit(nn.Module):
    """A network that goes from exit to exit, of which there is one (see `models.exits`).

    Args:
        network: (B, 3, S, S) -> (B, n).
        num_classes: n.
        name: what messages call it.

    `forward`: images (B, 3, S, S) -> (1, B, n).
    """

    num_exits = 1

    def __init__(self, network: nn.Module, num_classes: int, name: str = "the network") -> None:
        super().__init__()
        self._name = name
        self.network = network
        self.num_classes = num_classes
        self._macs: dict[tuple[int, int], tuple[int, ...]] = {}

    def forward(self, images: Tensor) -> Tensor:
        """See the class.

        Raises:
            ValueError: the network does not give logits of n classes.
        """
        logits: Tensor = self.network(images)
        if logits.ndim != 2 or logits.shape[1] != self.num_classes:
            raise ValueError(
                f"{self._name} gives {tuple(logits.shape)}, expected {self.num_classes} classes"
            )
        return logits[None]

    def begin(self, images: Tensor) -> Progress:
        """Starts on a batch; nothing is computed yet.

        Raises:
            ValueError: the network is in training mode, or images of a wrong shape.
            TypeError: images are not floating point.
        """
        if self.training:
            raise ValueError("the network is in training mode: call eval() before begin()")
        require_normalised_images(images)
        return _Whole(self, images)

    def whole_networks(self, image_size: tuple[int, int]) -> dict[str, tuple[int, int]]:
        """Names of the submodules that run in one piece, and the (H, W) of what they see."""
        return {"network": image_size}

    def macs_per_exit(self, image_size: tuple[int, int]) -> tuple[int, ...]:
        """(1,) of the whole network, for images (H, W)."""
        if image_size not in self._macs:
            self._macs[image_size] = (count_macs(self.network, (3, *image_size)),)
        return self._macs[image_size]


class _Whole:
    def __init__(self, network: SingleExit, images: Tensor) -> None:
        self._network = network
        self._images: Tensor | None = images

    def next_logits(self) -> Tensor:
        if self._images is None:
            raise RuntimeError("there is one exit only")
        images, self._images = self._images, None
        logits: Tensor = self._network(images)[0]
        return logits

    def keep(self, rows: Tensor) -> None:
        if self._images is not None:
            self._images = self._images[rows]

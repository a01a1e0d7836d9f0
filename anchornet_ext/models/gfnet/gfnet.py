"""GFNet (Wang et al., NeurIPS 2020): a glance at the whole, then patches that a policy chooses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from anchornet_ext._images import require_normalised_images
from anchornet_ext._meta import meta_images, meta_twin
from anchornet_ext.models.resizing import resized_square
from anchornet_ext.ops import gather_patches

from .classifiers import CascadedClassifier, RecurrentClassifier
from .encoder import Encoder
from .proposal import Proposal, ProposalNetwork, places


class Step(NamedTuple):
    """One input of a batch of sequences."""

    logits: Tensor
    """(B, n): the prediction from all inputs so far."""
    vector: Tensor
    """(B, F): the features of this input."""
    features: Tensor
    """(B, C, h, w): the map of this input, which the proposal network sees."""
    seen: Tensor
    """(B, ...): what the classifier remembers."""


class GFNet(nn.Module):
    """Encoders f_G and f_L, classifier f_C and proposal network pi.

    Input 1 of an image's sequence is the whole image resized to P x P; inputs 2..T are patches of
    P x P pixels, each placed by the proposal network after the input before it. Every input is an
    exit.

    Args:
        backbone: of both encoders, see `Encoder`.
        num_classes: n.
        num_exits: T, at least 2.
        patch_size: P in pixels.
        recurrent: classify with a GRU, else with one linear layer per step; None: as the paper does
            for the backbone's family.
        classifier_hidden: units of the classifier's GRU.
        policy_conv, policy_hidden: of the proposal network; None: as for the family.
        pretrained: start both encoders from published weights.

    `forward`: images (B, 3, H, W) -> (T, B, n) logits of every exit.

    Raises:
        ValueError: an unknown backbone, or a number out of its range.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        *,
        num_exits: int = 5,
        patch_size: int = 96,
        recurrent: bool | None = None,
        classifier_hidden: int = 1024,
        policy_conv: bool | None = None,
        policy_hidden: int | None = None,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        if num_exits < 2:
            raise ValueError(f"num_exits must be at least 2, got {num_exits}")
        for name, value in (
            ("patch_size", patch_size),
            ("classifier_hidden", classifier_hidden),
            ("policy_hidden", 1 if policy_hidden is None else policy_hidden),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.num_classes = num_classes
        self.num_exits = num_exits
        self.patch_size = patch_size
        self.glance = Encoder(backbone, num_classes, pretrained)
        self.focus = Encoder(backbone, num_classes, pretrained)
        family = self.glance.family
        map_size, features = self.glance.sizes(patch_size)
        self.recurrent = family.recurrent if recurrent is None else recurrent
        self.classifier: RecurrentClassifier | CascadedClassifier
        if self.recurrent:
            self.classifier = RecurrentClassifier(features, num_classes, classifier_hidden)
        else:
            self.classifier = CascadedClassifier(features, num_classes, num_exits)
        self.proposal = ProposalNetwork(
            map_size,
            family.policy_conv if policy_conv is None else policy_conv,
            family.policy_hidden if policy_hidden is None else policy_hidden,
        )
        self._macs: dict[tuple[int, int], tuple[int, ...]] = {}
        #: Per-step linear heads of the regularisation, Eq. (3); used in training only.
        self.heads = nn.ModuleList(nn.Linear(features, num_classes) for _ in range(num_exits))

    def check_images(self, images: Tensor) -> None:
        """Raises unless `images` are (B, 3, H, W), floating point and at least a patch large."""
        require_normalised_images(images)
        if min(images.shape[2:]) < self.patch_size:
            raise ValueError(
                f"images must be at least a patch of {self.patch_size} pixels, got "
                f"{images.shape[2]}x{images.shape[3]}"
            )

    def first_step(self, images: Tensor) -> Step:
        """The glance: (B, 3, H, W) resized, encoded and classified."""
        features, vector = self.glance(resized_square(images, self.patch_size))
        logits, seen = self.classifier(vector, None)
        if logits is None:
            logits = self.glance.last_layer(vector)
        return Step(logits, vector, features, seen)

    def next_step(self, images: Tensor, rows: Tensor, top_left: Tensor, seen: Tensor) -> Step:
        """One more patch: encoded and classified.

        Args:
            images: (B, 3, H, W).
            rows: (A,) int64, the images that the patches are of.
            top_left: (A, 2) int64, (row, column).
            seen: (A, ...), of the step before.
        """
        patches = gather_patches(
            images,
            top_left,
            self.patch_size,
            image_index=rows,
            memory_format=torch.channels_last,
        )
        features, vector = self.focus(patches)  # (A, C, h, w), (A, F)
        logits, new = self.classifier(vector, seen)
        return Step(logits, vector, features, new)

    def propose(self, features: Tensor, hidden: Tensor | None) -> Proposal:
        """Where to look next (see `ProposalNetwork`)."""
        proposal: Proposal = self.proposal(features, hidden)
        return proposal

    def forward(self, images: Tensor) -> Tensor:
        """Logits of every exit, (T, B, n), with the patches that the policy chooses."""
        self.check_images(images)
        progress = GFNetProgress(self, images)
        return torch.stack([progress.next_logits() for _ in range(self.num_exits)])

    def begin(self, images: Tensor) -> GFNetProgress:
        """Starts on a batch that is to leave exit by exit; nothing is computed yet.

        Raises:
            ValueError: the network is in training mode, where batch norm would mix the images, or
                images of a wrong shape.
            TypeError: images are not floating point.
        """
        if self.training:
            raise ValueError(
                "GFNet is in training mode, where batch norm's statistics depend on which images "
                "are left: call eval() before begin()"
            )
        self.check_images(images)
        return GFNetProgress(self, images)

    def macs_per_exit(self, image_size: tuple[int, int]) -> tuple[int, ...]:
        """(T,) multiply-adds of an image (H, W) that leaves at exit 1, ..., T.

        The proposal network's belong to the exit after it: it runs only if the image stays. They
        are counted once for each size; the modules are taken not to change.

        Raises:
            ValueError: the image is smaller than a patch.
        """
        if image_size not in self._macs:
            self._macs[image_size] = self._counted(image_size)
        return self._macs[image_size]

    def _counted(self, image_size: tuple[int, int]) -> tuple[int, ...]:
        twin = meta_twin(self)
        assert isinstance(twin, GFNet)
        costs = []
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            progress = twin.begin(meta_images(twin, (1, 3, *image_size)))
            for _ in range(self.num_exits):
                progress.next_logits()
                costs.append(counter.get_total_flops() // 2)
        return tuple(costs)


class GFNetProgress:
    """A batch of images that some inputs of have been seen (see `models.exits.Progress`)."""

    def __init__(self, network: GFNet, images: Tensor) -> None:
        self._network = network
        self._images = images
        self._rows = torch.arange(len(images), device=images.device)
        self._step: Step | None = None
        self._memory: Tensor | None = None
        self._top_left: list[Tensor] = []

    @property
    def top_left(self) -> Tensor:
        """(A, t - 1, 2): the patches seen so far of the images that are left."""
        if not self._top_left:
            return self._rows.new_empty((len(self._rows), 0, 2))
        return torch.stack(self._top_left, dim=1)

    def next_logits(self) -> Tensor:
        """(A, n) of the next exit.

        Raises:
            RuntimeError: there is no next exit.
        """
        network, images = self._network, self._images
        if self._step is None:
            self._step = network.first_step(images)
            return self._step.logits
        if len(self._top_left) + 1 >= network.num_exits:
            raise RuntimeError(f"there are no more than {network.num_exits} exits")
        mean, _, self._memory = network.propose(self._step.features, self._memory)
        size = (images.shape[2], images.shape[3])
        top_left = places(mean, size, network.patch_size)
        self._top_left.append(top_left)
        self._step = network.next_step(images, self._rows, top_left, self._step.seen)
        return self._step.logits

    def keep(self, rows: Tensor) -> None:
        """Goes on with these of the images that are left: (A',) int64."""
        self._rows = self._rows[rows]
        self._top_left = [one[rows] for one in self._top_left]
        if self._step is not None:
            self._step = Step._make(part[rows] for part in self._step)
        if self._memory is not None:
            self._memory = self._memory[rows]

"""What can be evaluated: anything that knows more about an image from exit to exit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, Protocol

import torch
from torch import Tensor

from anchornet_ext._extension import require_device
from anchornet_ext.data.transforms import Preprocessing
from anchornet_ext.inference import TwoStageClassifier
from anchornet_ext.inference.early_exit import evaluating
from anchornet_ext.inference.passes import available_patches, check_logits
from anchornet_ext.inference.policies import patch_locations
from anchornet_ext.inference.storage import checksum, read_config, resolve
from anchornet_ext.ops import gather_patches
from anchornet_ext.policy.exit_policy import ExitPolicy


class Answers(Protocol):
    """What comes out of `ExitSystem.classify` for B images, on the images' device."""

    @property
    def label(self) -> Tensor:
        """(B,) int64, index of the predicted class."""
        ...

    @property
    def probabilities(self) -> Tensor:
        """(B, n) of the answer."""
        ...

    @property
    def exit_step(self) -> Tensor:
        """(B,) int64, the exit where each image left, from 1."""
        ...

    @property
    def macs(self) -> Tensor:
        """(B,) int64, multiply-adds that each image cost."""
        ...


class ExitSystem(Protocol):
    """A system with T exits, as `collect` and all that follows from an exit table need it.

    Attributes:
        name: what it is called in tables and figures.
        checksum: the same for the same weights and settings, and for nothing else.
        class_names: of the n classes, in the order of the logits; None where it does not know them.
        num_classes: n.
        num_exits: T.
        preprocessing: how a photo becomes its input.
        temperature_scales: whether dividing `anytime_logits` by a temperature is what the running
            system does; else no temperature grid is collected.
        costs_vary: whether images that leave at one exit cost differently; then it has
            `logits_and_costs` as well (see `VaryingCosts`).
        policy: when images leave unless told otherwise; None: never early.
        device: where it runs.
        about: whatever else a report should say, for JSON.
    """

    @property
    def name(self) -> str: ...
    @property
    def checksum(self) -> str: ...
    @property
    def class_names(self) -> Sequence[str] | None: ...
    @property
    def num_classes(self) -> int: ...
    @property
    def num_exits(self) -> int: ...
    @property
    def preprocessing(self) -> Preprocessing: ...
    @property
    def temperature_scales(self) -> bool: ...
    @property
    def costs_vary(self) -> bool: ...
    @property
    def policy(self) -> ExitPolicy | None: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def about(self) -> Mapping[str, Any]: ...

    def macs_per_exit(self) -> tuple[int, ...]:
        """(T,) multiply-adds of an image that leaves at exit 1, ..., T.

        Where costs vary, of a typical image; the exit table then has the mean of its images'.
        """
        ...

    def classify(
        self,
        images: Tensor,
        thresholds: Sequence[float] | None = None,
        exit_at: int | None = None,
        *,
        policy: ExitPolicy | None = None,
    ) -> Answers:
        """Real early exit: what an image does not need is not computed.

        Args:
            images: (B, 3, S, S) normalised by `preprocessing`, on the system's device.
            thresholds: T - 1 of them, short for `policy=ExitPolicy(thresholds)`.
            exit_at: every image leaves at this exit, 1 to T.
            policy: None, without the others: the system's own.
        """
        ...

    def anytime_logits(self, images: Tensor) -> Tensor:
        """What it knows at each exit: (T, B, n) float32 logits whose softmax is its prediction.

        Of a system that adds up what its inputs say they are the running sums, of one that makes up
        its mind anew at each exit (MSDNet, GFNet) that exit's own logits. The largest probability
        is the confidence that real early exit compares.

        Args:
            images: (B, 3, S, S) normalised by `preprocessing`, on the system's device.
        """
        ...


class VaryingCosts(ExitSystem, Protocol):
    """A system whose images cost differently at the same exit, by what they show (SAR)."""

    def logits_and_costs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """`anytime_logits`, and (B, T) int64 multiply-adds of each image at each exit."""
        ...


class TwoStageSystem:
    """A two-stage classifier: the glance, then the patches (see `ExitSystem`).

    Args:
        classifier: that is evaluated, folded or not.
        name, checksum: see `ExitSystem`.
        about: added to what is said of it.
    """

    costs_vary = False

    def __init__(
        self,
        classifier: TwoStageClassifier,
        name: str,
        checksum: str,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.classifier = classifier
        self.name = name
        self.checksum = checksum
        self._about = dict(about or {})

    @classmethod
    def load(
        cls, folder_or_name: str | PathLike[str], device: torch.device, name: str | None = None
    ) -> TwoStageSystem:
        """A saved or bundled model, tuned as `anchornet predict` runs it.

        Args:
            folder_or_name: where it is, or what a bundled one is called.
            device: where it is to run.
            name: what reports call it; None: by its folder.

        Raises:
            FileNotFoundError, ValueError: as `TwoStageClassifier.from_pretrained`.
            ImportError: there are no operators for the device.
        """
        require_device(device)
        folder = resolve(folder_or_name)
        classifier = TwoStageClassifier.from_pretrained(folder, fold=False)
        # Not of the policy: the table is the same whatever it is.
        digest = checksum(read_config(folder))
        about = {
            "model": str(folder_or_name),
            "macs_per_exit_unfolded": list(classifier.macs_per_exit()),
        }
        name = name or f"AnchorNet ({folder.name})"
        return cls(classifier.to(device).tuned(), name, digest, about)

    @property
    def class_names(self) -> Sequence[str] | None:
        """As the model was saved with."""
        return self.classifier.class_names

    @property
    def num_classes(self) -> int:
        """n."""
        return self.classifier.num_classes

    @property
    def num_exits(self) -> int:
        """T; less than the classifier's where its grid has fewer places than patches are wanted."""
        side = self.preprocessing.crop_size
        return 1 + available_patches(self.classifier, (side, side))

    @property
    def preprocessing(self) -> Preprocessing:
        """As the model was saved with."""
        return self.classifier.preprocessing

    @property
    def temperature_scales(self) -> bool:
        """With the criterion "probabilities", temperatures change the sums and not only their
        confidence: what one exit's does depends on those before."""
        return self.classifier.criterion == "logits"

    @property
    def policy(self) -> ExitPolicy | None:
        """As the model was saved with."""
        return self.classifier.policy

    @property
    def device(self) -> torch.device:
        """The classifier's."""
        return next(self.classifier.parameters()).device

    def classify(
        self,
        images: Tensor,
        thresholds: Sequence[float] | None = None,
        exit_at: int | None = None,
        *,
        policy: ExitPolicy | None = None,
    ) -> Answers:
        """Algorithm 1 (see `inference.early_exit`)."""
        return self.classifier.classify(images, thresholds, exit_at, policy=policy)

    @property
    def about(self) -> Mapping[str, Any]:
        """The networks and settings."""
        model = self.classifier
        return {
            **self._about,
            "glance": model.glance_name,
            "focus": model.focus_name,
            "glance_size": model.glance_size,
            "patch_size": model.patch_size,
            "image_size": self.preprocessing.crop_size,
            "iou_threshold": model.iou_threshold,
            "criterion": model.criterion,
            "folded": model.is_folded,
        }

    def macs_per_exit(self) -> tuple[int, ...]:
        """Counted, at the sizes that the networks see."""
        return self.classifier.macs_per_exit()[: self.num_exits]

    def anytime_logits(self, images: Tensor) -> Tensor:
        """Summed logits; the log of the mean probabilities under the criterion "probabilities"."""
        model = self.classifier
        with torch.no_grad(), evaluating(model.network_modules()):
            glance = model.glance_input(images).contiguous(memory_format=torch.channels_last)
            each = [model.glance(glance)]
            # As early exit does it, one patch of every image at a time: a batch of all patches
            # would need several times the memory, and longer.
            for top_left in patch_locations(model, images).unbind(dim=1):  # (B, 2)
                patches = gather_patches(
                    images,
                    top_left[:, None],
                    model.patch_size,
                    memory_format=torch.channels_last,
                )  # (B, 3, K, K)
                each.append(model.focus(patches))
            for part, of_input in zip(("glance", *["focus"] * len(each)), each, strict=False):
                check_logits(of_input, model.num_classes, part)
            logits = torch.stack(each).float()  # (T, B, n)
            if model.criterion == "logits":
                return logits.cumsum(dim=0)
            inputs = torch.arange(1, len(logits) + 1, device=logits.device)[:, None, None]
            return (logits.softmax(dim=-1).cumsum(dim=0) / inputs).log()

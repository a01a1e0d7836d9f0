"""The two-stage classifier: a glance at the small picture, then patches where AnchorNet points."""

from __future__ import annotations

import copy
from collections.abc import Generator, Iterable, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from anchornet_ext.data.transforms import Preprocessing
from anchornet_ext.models import AnchorNet, FoldedAnchorNet
from anchornet_ext.models.macs import count_macs
from anchornet_ext.models.resizing import bicubic_square
from anchornet_ext.models.tuning import tune
from anchornet_ext.ops import resize_images
from anchornet_ext.policy.exit_policy import ExitPolicy, require_policy

from .early_exit import classify
from .exit_rules import listed
from .lookahead import Lookahead
from .module_tree import ModuleTree

if TYPE_CHECKING:
    from .classification import Classification
    from .policies import PatchPolicy
    from .stream import StreamResult

Criterion = Literal["logits", "probabilities"]
CRITERIA: tuple[Criterion, ...] = ("logits", "probabilities")


class TwoStageClassifier(nn.Module):
    """AnchorNet and two classification networks of the same classes (section 3.4, Fig. 4).

    Input 1 of an image's sequence is the whole image resized to `glance_size`, seen by `glance`;
    inputs 2..T are the patches that `anchor` localises, seen by `focus`; T = 1 + `num_patches`.

    Args:
        anchor: `AnchorNet`, or its folded twin `FoldedAnchorNet` for inference only.
        glance: the network of the resized image, (B, 3, g, g) -> (B, n).
        focus: the network of the patches, (B, 3, K, K) -> (B, n).
        num_patches: how many patches an image may cost, at least 1 (T - 1 in the paper).
        iou_threshold: theta of section 3.3, or one for each patch.
        glance_size: side of the resized image in pixels.
        class_names: the n names, in the order of the logits.
        preprocessing: how a photo becomes the networks' input.
        criterion: "logits": the confidence is the softmax of the summed logits (the authors' code);
            "probabilities": it is the mean of the steps' probabilities (the paper's text).
        glance_name, focus_name: the names that `build_backbone` knows the networks by. Only
            `save_pretrained` needs them.
        thresholds: short for `policy=ExitPolicy(thresholds)`.
        policy: when images leave and with which answer, where `classify` is not told. None: no
            image leaves early. Attributes `policy` and `thresholds` can be set later, too.

    `forward` is the anytime prediction of the last exit: (B, 3, H, W) -> summed logits (B, n) of
    the glance and all patches.

    Raises:
        ValueError: a size, a threshold, the criterion or the number of class names is out of range,
            the policy is for another number of exits, or there are both thresholds and a policy.
    """

    def __init__(
        self,
        anchor: AnchorNet | FoldedAnchorNet,
        glance: nn.Module,
        focus: nn.Module,
        *,
        num_patches: int = 4,
        iou_threshold: float | Sequence[float] = 0.3,
        glance_size: int = 95,
        class_names: Sequence[str] | None = None,
        preprocessing: Preprocessing | None = None,
        criterion: Criterion = "logits",
        glance_name: str | None = None,
        focus_name: str | None = None,
        thresholds: Sequence[float] | None = None,
        policy: ExitPolicy | None = None,
    ) -> None:
        super().__init__()
        if num_patches < 1:
            raise ValueError(f"num_patches must be at least 1, got {num_patches}")
        if glance_size < 1:
            raise ValueError(f"glance_size must be at least 1 pixel, got {glance_size}")
        if criterion not in CRITERIA:
            raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}, got {criterion!r}")
        if not isinstance(iou_threshold, (int, float)) and len(iou_threshold) != num_patches:
            raise ValueError(
                f"iou_threshold has {len(iou_threshold)} entries for {num_patches} patches"
            )
        self.anchor = anchor
        self.glance = glance
        self.focus = focus
        self.num_patches = num_patches
        self.iou_threshold = iou_threshold
        self.glance_size = glance_size
        self.preprocessing = preprocessing if preprocessing is not None else Preprocessing()
        self.criterion: Criterion = criterion
        self.glance_name = glance_name
        self.focus_name = focus_name
        self.class_names = tuple(class_names) if class_names is not None else None
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise ValueError(
                f"{len(self.class_names)} class names for networks of {self.num_classes} classes"
            )
        if thresholds is not None and policy is not None:
            raise ValueError("give thresholds or a policy, not both: a policy has its own")
        self.policy = policy
        if thresholds is not None:
            self.thresholds = tuple(thresholds)
        self._tree: ModuleTree | None = None
        self._macs: dict[tuple[str, tuple[int, int]], int] = {}  # of the networks in `_tree`
        #: What `early_exit.classify` last worked out for these networks, and from what.
        self.last_plan: tuple[object, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # The plan is for these very networks, and not for those of a copy.
        return {**self.__dict__, "last_plan": None}

    @property
    def num_classes(self) -> int:
        """How many classes there are (n)."""
        return self.anchor.num_classes

    @property
    def num_exits(self) -> int:
        """T: the glance and every patch can be an image's last input."""
        return 1 + self.num_patches

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels: AnchorNet's receptive field."""
        return self.anchor.patch_size

    @property
    def is_folded(self) -> bool:
        """Whether `anchor` is the folded one, which neither trains nor saves."""
        return isinstance(self.anchor, FoldedAnchorNet)

    @property
    def policy(self) -> ExitPolicy | None:
        """When images leave and with which answer; None lets no image leave early.

        Setting it raises ValueError if the policy is for another number of exits, TypeError if it
        is none, but the name of its file, say.
        """
        return self._policy

    @policy.setter
    def policy(self, policy: ExitPolicy | None) -> None:
        if policy is not None:
            require_policy(policy, self.num_exits)
        self._policy = policy

    @property
    def thresholds(self) -> tuple[float, ...] | None:
        """The policy's T - 1 thresholds. Setting them makes a policy of nothing else."""
        return None if self.policy is None else self.policy.thresholds

    @thresholds.setter
    def thresholds(self, thresholds: Sequence[float] | None) -> None:
        if thresholds is None:
            self.policy = None
        else:
            self.policy = ExitPolicy(self.checked_thresholds(thresholds))

    def checked_thresholds(self, thresholds: Sequence[float]) -> tuple[float, ...]:
        """The thresholds as floats.

        A threshold of 1 or more never lets an image leave, one below 0 always does; the last exit
        has none, because every image that comes so far leaves there.

        Raises:
            ValueError: there are not T - 1 of them, or one is NaN.
        """
        policy = ExitPolicy(listed(thresholds))
        policy.require_exits(self.num_exits)
        return policy.thresholds

    def glance_input(self, images: Tensor) -> Tensor:
        """Resizes (B, 3, H, W) to (B, 3, g, g) in channels_last, bicubic with corners aligned.

        Normalised images keep their type; uint8 images are normalised as the preprocessing says, in
        the networks' type.
        """
        if images.dtype == torch.uint8:
            size, layout = (self.glance_size, self.glance_size), torch.channels_last
            return resize_images(images, size, memory_format=layout, **self.normalisation())
        return bicubic_square(images, self.glance_size)

    def normalisation(self) -> dict[str, Any]:
        """What `gather_patches` and `resize_images` need to make uint8 images the networks' input.

        mean and std, 3 numbers each, and dtype.
        """
        dtype = self.anchor.classifier.weight.dtype
        return {"mean": self.preprocessing.mean, "std": self.preprocessing.std, "dtype": dtype}

    def macs_per_exit(self, image_size: tuple[int, int] | None = None) -> tuple[int, ...]:
        """Multiply-adds that an image costs when it leaves at exit 1, ..., T.

        glance at exit 1; glance + AnchorNet + (t - 1) * focus at exit t > 1. Counted at
        the sizes that the networks really see; the folded AnchorNet counts what it does.

        Args:
            image_size: (H, W) in pixels; None is the preprocessing's crop.
        """
        if image_size is None:
            image_size = (self.preprocessing.crop_size, self.preprocessing.crop_size)
        glance = self._network_macs("glance", (self.glance_size, self.glance_size))
        anchor = self._network_macs("anchor", image_size)
        focus = self._network_macs("focus", (self.patch_size, self.patch_size))
        return (glance, *(glance + anchor + step * focus for step in range(1, self.num_exits)))

    def _network_macs(self, name: str, size: tuple[int, int]) -> int:
        """`count_macs`, remembered as long as the networks consist of the same modules."""
        self.network_modules()
        if (name, size) not in self._macs:
            self._macs[name, size] = count_macs(self.get_submodule(name), (3, *size))
        return self._macs[name, size]

    def network_modules(self) -> Sequence[nn.Module]:
        """The modules of the three networks that know whether they train. See `ModuleTree`."""
        roots = self.anchor, self.glance, self.focus
        if self._tree is None or not self._tree.is_of(roots):
            self._tree = ModuleTree(roots)
            self._macs = {}
            self.last_plan = None
        return self._tree.modules

    def fold(self) -> TwoStageClassifier:
        """The classifier for inference: AnchorNet folded, eval mode, weights in channels_last.

        It is a copy: neither training nor moving this one changes it afterwards. It gives the same
        results up to rounding and cannot be saved or trained. A folded one returns itself.
        """
        if isinstance(self.anchor, FoldedAnchorNet):
            return self
        folded = self._with_networks(
            self.anchor.fold(), copy.deepcopy(self.glance), copy.deepcopy(self.focus)
        )
        folded.requires_grad_(False)
        folded.eval()
        return folded.to(memory_format=torch.channels_last)

    def tuned(
        self, *, compile: bool = False, dtype: torch.dtype | None = None
    ) -> TwoStageClassifier:
        """The classifier for inference as fast as it gets: folded, glance and focus tuned.

        A copy like that of `fold`, whose glance and focus went through `models.tuning.tune`: their
        batch norms are folded as well, and they may be compiled or in another dtype. It gives the
        same results up to rounding, in float16 or bfloat16 up to a coarser one, so that an image
        whose confidence is close to a threshold may leave at another exit.

        Args:
            compile: see `tune`. Each batch size is compiled; `stream` has only one.
            dtype: of glance and focus. AnchorNet follows on a GPU; on a CPU it stays in float32,
                which its fused operator is made for.

        Raises:
            TypeError: `dtype` is no floating point type.
        """
        if isinstance(self.anchor, FoldedAnchorNet):
            anchor = copy.deepcopy(self.anchor)
        else:
            anchor = self.anchor.fold()
        anchor.requires_grad_(False)
        if dtype is not None and next(anchor.parameters()).is_cuda:
            anchor.to(dtype)
        tuned = self._with_networks(
            anchor,
            tune(self.glance, compile=compile, dtype=dtype),
            tune(self.focus, compile=compile, dtype=dtype),
        )
        tuned.eval()
        return tuned

    def _with_networks(
        self, anchor: AnchorNet | FoldedAnchorNet, glance: nn.Module, focus: nn.Module
    ) -> TwoStageClassifier:
        return TwoStageClassifier(
            anchor,
            glance,
            focus,
            num_patches=self.num_patches,
            iou_threshold=self.iou_threshold,
            glance_size=self.glance_size,
            class_names=self.class_names,
            preprocessing=self.preprocessing,
            criterion=self.criterion,
            glance_name=self.glance_name,
            focus_name=self.focus_name,
            policy=self.policy,
        )

    def forward(self, images: Tensor) -> Tensor:
        """Summed logits (B, n) of the glance and all patches; no exits, the modules' own mode."""
        from .policies import input_logits

        return input_logits(self, images).sum(dim=0)

    def classify(
        self,
        images: Tensor,
        thresholds: Sequence[float] | None = None,
        exit_at: int | None = None,
        *,
        policy: ExitPolicy | None = None,
        lookahead: Lookahead = 1,
    ) -> Classification:
        """Algorithm 1 for a batch, every image costing only what it needs. See `early_exit`."""
        return classify(self, images, thresholds, exit_at, policy=policy, lookahead=lookahead)

    def stream(self, source: Iterable[Any], **options: Any) -> Generator[StreamResult, None, None]:
        """Algorithm 1 for images as they come, every pass on a whole batch. See `stream.stream`."""
        from .stream import stream

        return stream(self, source, **options)

    def anytime_logits(
        self,
        images: Tensor,
        policy: PatchPolicy = "anchornet",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Summed logits after each input, (T, B, n). See `policies`."""
        from .policies import anytime_logits

        return anytime_logits(self, images, policy, generator)

    def save_pretrained(
        self, folder: str | PathLike[str], *, dtype: torch.dtype | None = None
    ) -> None:
        """Writes config.json and the networks' safetensors. See `storage.save`."""
        from .storage import save

        save(self, folder, dtype=dtype)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_name: str | PathLike[str],
        *,
        fold: bool = True,
        device: torch.device | str = "cpu",
    ) -> TwoStageClassifier:
        """Loads a saved or bundled classifier in eval mode, ready to be used: `tuned()`.

        See `storage.load`. Take `fold=False` to train further or to save again, or to tune it in
        another way: `from_pretrained(name, fold=False).tuned(dtype=torch.bfloat16)`.
        """
        from .storage import load

        classifier = load(folder_or_name).to(device)
        return classifier.tuned() if fold else classifier

    def extra_repr(self) -> str:
        values: dict[str, Any] = {
            "num_patches": self.num_patches,
            "iou_threshold": self.iou_threshold,
            "glance_size": self.glance_size,
            "criterion": self.criterion,
            "thresholds": self.thresholds,
        }
        if self.policy is not None and self.policy.temperatures is not None:
            values["temperatures"] = self.policy.temperatures
        if self.policy is not None and self.policy.answer != "last":
            values["answer"] = self.policy.answer
        return ", ".join(f"{key}={value!r}" for key, value in values.items())

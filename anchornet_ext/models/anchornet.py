"""AnchorNet (section 3.2, Table 1): the padding-free patch proposal network, and its folding."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from anchornet_ext import _extension

from ._structure import Structure, modules_of_types, parameters_of

Skip = Literal["centre", "top_left"]


class BlockSetting(NamedTuple):
    """One MBConv row of Table 1."""

    expansion: float
    out_channels: int
    stride: int


#: The MBConv rows of Table 1, from input to output. Every kernel is 3x3 without padding.
BLOCKS = (
    BlockSetting(1, 16, 2),
    BlockSetting(3, 24, 2),
    BlockSetting(4, 24, 1),
    BlockSetting(4, 48, 1),
    BlockSetting(2, 96, 1),
    BlockSetting(1.5, 96, 1),
    BlockSetting(1.5, 96, 1),
)
STEM_CHANNELS = 16
STEM_STRIDE = 2
FEATURE_CHANNELS = BLOCKS[-1].out_channels
EXPANDED_CHANNELS = 512
PATCH_SIZE = 95
STRIDE = 8
#: Of each block's first convolution (the stem, then expansions) and depthwise convolution.
_FUSED_STRIDES = ([STEM_STRIDE, 1, 1, 1, 1, 1, 1], [block.stride for block in BLOCKS])


class ConvNormAct(nn.Module):
    """Convolution without padding, batch norm, SiLU.

    With `folded`, the convolution has a bias and there is no batch norm. Without `activation`,
    there is no SiLU.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        activation: bool = True,
        folded: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride=stride, groups=groups, bias=folded
        )
        self.norm = nn.Identity() if folded else nn.BatchNorm2d(out_channels)
        # In place only where no gradient is expected: autograd would have to clone its input.
        self.activation = nn.SiLU(inplace=folded) if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.norm(self.conv(x)))
        return out


class SqueezeExcitation(nn.Module):
    """Channel gates from the mean over the whole map.

    This is the one place where a location of AnchorNet's map depends on more than its patch.
    """

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.reduce = nn.Linear(channels, hidden_channels)
        self.expand = nn.Linear(hidden_channels, channels)

    def gates(self, x: Tensor) -> Tensor:
        """The gates (B, C), each in (0, 1), of x (B, C, h, w)."""
        hidden = nn.functional.silu(self.reduce(x.mean(dim=(2, 3))))
        gates: Tensor = self.expand(hidden)
        return gates.sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gates(x)[:, :, None, None]


class MBConv(nn.Module):
    """Inverted bottleneck of EfficientNet with a padding-free 3x3 depthwise convolution.

    The shortcut of a block that keeps stride and width loses two rows and two columns, as the
    convolution does: `skip="centre"` takes one from each side, which keeps every feature above the
    centre of its patch; "top_left" keeps the top-left part, as the authors' released weights were
    trained with. Either crop stays inside the receptive field of the convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        expansion: float,
        stride: int,
        skip: Skip,
        folded: bool = False,
    ) -> None:
        super().__init__()
        channels = int(in_channels * expansion)
        self.expand = (
            nn.Identity()
            if expansion == 1
            else ConvNormAct(in_channels, channels, 1, folded=folded)
        )
        self.depthwise = ConvNormAct(
            channels, channels, 3, stride=stride, groups=channels, folded=folded
        )
        self.excitation = SqueezeExcitation(channels, int(in_channels * 0.25))
        self.project = ConvNormAct(channels, out_channels, 1, activation=False, folded=folded)
        self.has_skip = stride == 1 and in_channels == out_channels
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.excitation(self.depthwise(self.expand(x))))
        if not self.has_skip:
            return out
        if self.skip == "centre":
            return out + x[:, :, 1:-1, 1:-1]
        return out + x[:, :, :-2, :-2]


#: What the folded network is made of, and how many parameters these have before the classifier.
_FUSED_MODULES = frozenset(
    {
        *(nn.Sequential, MBConv, ConvNormAct, SqueezeExcitation),
        *(nn.Conv2d, nn.Linear, nn.SiLU, nn.Identity),
    }
)
_FUSED_PARAMETERS = 10 * len(BLOCKS)


def _build_stem(in_channels: int, folded: bool) -> ConvNormAct:
    return ConvNormAct(in_channels, STEM_CHANNELS, 3, stride=STEM_STRIDE, folded=folded)


def _build_blocks(skip: Skip, folded: bool) -> nn.Sequential:
    blocks = nn.Sequential()
    in_channels = STEM_CHANNELS
    for setting in BLOCKS:
        blocks.append(
            MBConv(
                in_channels,
                setting.out_channels,
                expansion=setting.expansion,
                stride=setting.stride,
                skip=skip,
                folded=folded,
            )
        )
        in_channels = setting.out_channels
    return blocks


def _check_settings(num_classes: int, in_channels: int, skip: str) -> None:
    if num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, got {num_classes}")
    if in_channels < 1:
        raise ValueError(f"in_channels must be at least 1, got {in_channels}")
    if skip not in ("centre", "top_left"):
        raise ValueError(f"skip must be 'centre' or 'top_left', got {skip!r}")


def _check_images(images: Tensor, in_channels: int) -> None:
    if images.dim() != 4:
        raise ValueError(f"images must be (B, {in_channels}, H, W), got {tuple(images.shape)}")
    if images.shape[1] != in_channels:
        raise ValueError(
            f"images must have {in_channels} channels, got {images.shape[1]} "
            f"in {tuple(images.shape)}"
        )
    height, width = images.shape[2:]
    if height < PATCH_SIZE or width < PATCH_SIZE:
        raise ValueError(
            f"images must be at least {PATCH_SIZE}x{PATCH_SIZE} pixels, the receptive field of "
            f"AnchorNet, got {height}x{width}"
        )
    if not images.is_floating_point():
        raise TypeError(f"images must be floating point, got {images.dtype}")


class AnchorNet(nn.Module):
    """The patch proposal network of section 3.2 (Table 1).

    A 3x3 convolution and seven MBConv blocks, none with padding, so that location (r, c) of the
    feature map sees exactly the pixels of rows [8r, 8r + 95) and columns [8c, 8c + 95), but for the
    channel gates of squeeze-and-excitation, which depend on the whole image. Then a 1x1 convolution
    to 512 channels, global average pooling and a linear classifier.

    Args:
        num_classes: N, the number of classes.
        in_channels: channels of the input images.
        skip: how the shortcuts are cropped: "centre" to train anew, "top_left" for the weights
            that the authors released (see `MBConv`).
        dropout: probability of dropping a pooled channel in training, before the classifier.

    Raises:
        ValueError: a setting is out of range.
    """

    patch_size = PATCH_SIZE
    stride = STRIDE
    feature_channels = FEATURE_CHANNELS

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        in_channels: int = 3,
        skip: Skip = "centre",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        _check_settings(num_classes, in_channels, skip)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.skip = skip
        self.stem = _build_stem(in_channels, folded=False)
        self.blocks = _build_blocks(skip, folded=False)
        self.expansion = nn.Conv2d(FEATURE_CHANNELS, EXPANDED_CHANNELS, 1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(EXPANDED_CHANNELS, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise for training from scratch (fan-out normal, as EfficientNet)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                # A depthwise filter feeds one channel: without the division by the groups, its
                # fan-out would be counted over all of them.
                kernel = module.kernel_size[0] * module.kernel_size[1]
                fan_out = kernel * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)
            elif isinstance(module, SqueezeExcitation):
                for linear in (module.reduce, module.expand):
                    nn.init.kaiming_normal_(linear.weight, mode="fan_in")
                    nn.init.zeros_(linear.bias)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def features(self, images: Tensor) -> Tensor:
        """X, the map before the 1x1 expansion: what `class_activation_map` reads.

        Args:
            images: (B, in_channels, H, W), floating point, H and W at least 95 pixels.

        Returns:
            (B, 96, (H - 95) // 8 + 1, (W - 95) // 8 + 1).

        Raises:
            ValueError: wrong number of dimensions or channels, or an image too small.
            TypeError: images are not floating point.
        """
        _check_images(images, self.in_channels)
        out: Tensor = self.blocks(self.stem(images))
        return out

    def logits(self, features: Tensor) -> Tensor:
        """Logits (B, N) of features (B, 96, h, w)."""
        pooled = self.expansion(features).mean(dim=(2, 3))  # (B, 512)
        out: Tensor = self.classifier(self.dropout(pooled))
        return out

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, N) of images (B, in_channels, H, W); errors as for `features`."""
        return self.logits(self.features(images))

    @property
    def class_weight(self) -> Tensor:
        """W_fc W_exp (N, 96): row n times X is the activation map of class n up to a constant.

        The expansion, the pooling and the classifier are linear with nothing in between, so
        Eq. 2 on the 512 expanded channels is `class_weight[n] @ X + (W_fc b_exp)[n]` on the 96.
        """
        return self.classifier.weight @ self.expansion.weight.flatten(1)

    @property
    def class_bias(self) -> Tensor:
        """W_fc b_exp + b_fc (N,): logits are `class_weight @ mean(X) + class_bias`."""
        assert self.expansion.bias is not None
        return self.classifier.weight @ self.expansion.bias + self.classifier.bias

    @torch.no_grad()
    def fold(self) -> FoldedAnchorNet:
        """The same function of the image in evaluation mode, at less cost.

        Batch norm goes into the convolutions, and expansion, pooling and classifier become one
        linear layer on the mean of the features, so the 512-channel map never exists. Equal to
        `self.eval()` up to rounding; the folding itself is done in float64. The result has its own
        parameters, is in evaluation mode and in channels_last, on the device and in the dtype of
        this module.
        """
        weight = self.classifier.weight
        folded = FoldedAnchorNet(self.num_classes, in_channels=self.in_channels, skip=self.skip)
        folded = folded.to(device=weight.device, dtype=weight.dtype)
        sources = dict(self.named_modules())
        for name, target in folded.named_modules():
            if isinstance(target, ConvNormAct):
                source = sources[name]
                assert isinstance(source, ConvNormAct)
                _fold_batch_norm(source, target)
            elif isinstance(target, SqueezeExcitation):
                target.load_state_dict(sources[name].state_dict())
        assert self.expansion.bias is not None
        expansion = self.expansion.weight.flatten(1).double()
        folded.classifier.weight.copy_(weight.double() @ expansion)
        folded.classifier.bias.copy_(
            weight.double() @ self.expansion.bias.double() + self.classifier.bias.double()
        )
        return folded.eval().to(memory_format=torch.channels_last)


class FoldedAnchorNet(nn.Module):
    """AnchorNet for inference: no batch norm, no 512-channel map. Made by `AnchorNet.fold`.

    Has `features`, `logits`, `forward`, `class_weight` and `class_bias` with AnchorNet's meaning.

    On the CPU, in float32 and where no gradient is wanted, `features` is one operator,
    `ops.mbconv_chain`, also under `torch.compile`. Otherwise (another device or dtype, autocast,
    export, forward-mode gradients, a hook on a submodule or on all modules, a module of another
    type in its place) it is the submodules' PyTorch code. Both agree up to rounding.
    A batch of 32 images of 224x224 takes 0.48 of the submodules' time in this way, and 0.25 of the
    unfolded network's (one thread with AVX-512; `anchornet bench localisation`).

    Attributes:
        fused: set it to False to have the submodules run in any case, for comparison.
    """

    patch_size = PATCH_SIZE
    stride = STRIDE
    feature_channels = FEATURE_CHANNELS

    def __init__(
        self, num_classes: int = 1000, *, in_channels: int = 3, skip: Skip = "centre"
    ) -> None:
        super().__init__()
        _check_settings(num_classes, in_channels, skip)
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.skip = skip
        self.stem = _build_stem(in_channels, folded=True)
        self.blocks = _build_blocks(skip, folded=True)
        self.classifier = nn.Linear(FEATURE_CHANNELS, num_classes)
        self.fused = True
        self._structure: Structure | None = None

    def features(self, images: Tensor) -> Tensor:
        """X (B, 96, h, w) in channels_last; see `AnchorNet.features`."""
        _check_images(images, self.in_channels)
        parameters = self._fused_parameters(images)
        out: Tensor
        if parameters is None:
            images = images.contiguous(memory_format=torch.channels_last)
            out = self.blocks(self.stem(images))
        else:
            out = torch.ops.anchornet_ext.mbconv_chain(
                images, parameters, *_FUSED_STRIDES, self.skip == "centre"
            )
        return out

    def _fused_parameters(self, images: Tensor) -> list[Tensor] | None:
        """What `ops.mbconv_chain` takes, or None where the submodules have to run.

        Called for every batch, so that changed weights and modules count, and therefore in haste.
        """
        if not (
            self.fused
            and _extension.available()
            and images.is_cpu
            and images.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_exporting()
            and forward_ad._current_level < 0  # a forward-mode gradient would be lost
        ):
            return None
        parameters = self._parameters_in_order()
        # Modules may have been taken out or put in.
        if parameters is None or len(parameters) != _FUSED_PARAMETERS:
            return None
        if torch.is_grad_enabled() and any(t.requires_grad for t in (images, *parameters)):
            return None
        return parameters

    def _parameters_in_order(self) -> list[Tensor] | None:
        """Those before the classifier; None unless they are float32 and the modules as expected."""
        # The modules were registered in the operator's order; the stem takes the place of the
        # expansion that the first block has not.
        roots = self.stem, self.blocks
        known = None if torch.compiler.is_compiling() else self._structure  # it cannot be traced
        if known is not None and known.roots == roots and known.is_as_it_was():
            return known.parameters if known.is_on_cpu(torch.float32) else None
        modules = modules_of_types(roots, _FUSED_MODULES)
        if modules is None:
            return None
        if not torch.compiler.is_compiling():
            self._structure = Structure(roots, modules)
        parameters = parameters_of(modules)
        on_cpu = all(p.is_cpu and p.dtype == torch.float32 for p in parameters)
        return parameters if on_cpu else None

    def logits(self, features: Tensor) -> Tensor:
        """Logits (B, N) of features (B, 96, h, w)."""
        out: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return out

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, N) of images (B, in_channels, H, W); errors as for `features`."""
        return self.logits(self.features(images))

    @property
    def class_weight(self) -> Tensor:
        """(N, 96); see `AnchorNet.class_weight`."""
        return self.classifier.weight

    @property
    def class_bias(self) -> Tensor:
        """(N,); see `AnchorNet.class_bias`."""
        return self.classifier.bias


def _fold_batch_norm(source: ConvNormAct, target: ConvNormAct) -> None:
    """Puts the batch norm of `source`, as it acts in evaluation, into `target`'s convolution."""
    norm, conv = source.norm, target.conv
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    assert conv.bias is not None
    scale = norm.weight.double() * (norm.running_var.double() + norm.eps).rsqrt()
    conv.weight.copy_(source.conv.weight.double() * scale[:, None, None, None])
    conv.bias.copy_(norm.bias.double() - norm.running_mean.double() * scale)

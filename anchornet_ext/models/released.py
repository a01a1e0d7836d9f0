"""Reads the checkpoints that the authors of AnchorNet released."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import NamedTuple

from torch import Tensor, nn

from .anchornet import BLOCKS, AnchorNet
from .weight_files import load_whole, plain_state_dict, read_weights

#: Released layer -> ours, inside a block.
_IN_BLOCK = {
    "conv1": "expand.conv",
    "bn1": "expand.norm",
    "conv2": "depthwise.conv",
    "bn2": "depthwise.norm",
    "se.se1": "excitation.reduce",
    "se.se2": "excitation.expand",
    "conv3": "project.conv",
    "bn3": "project.norm",
}
#: Released layer -> ours, for the whole network.
_LAYERS = {
    "conv1": "stem.conv",
    "bn1": "stem.norm",
    **{
        f"bneck.{i}.{theirs}": f"blocks.{i}.{ours}"
        for i in range(len(BLOCKS))
        for theirs, ours in _IN_BLOCK.items()
    },
    "exp_conv": "expansion",
    "fc": "classifier",
}
#: Layers that the released code builds and never runs: there is nothing to expand by a factor of 1.
_UNUSED = tuple(
    f"bneck.{i}.{layer}."
    for i, block in enumerate(BLOCKS)
    if block.expansion == 1
    for layer in ("conv1", "bn1")
)


class ReleasedInfo(NamedTuple):
    """What a released checkpoint says about itself."""

    accuracy: float | None
    """Top-1 accuracy on the authors' validation, in [0, 1]; None where the file does not say."""
    epoch: int | None
    """Epoch of the weights, from 0; None where the file does not say."""


def load_released_anchornet(path: str | PathLike[str]) -> AnchorNet:
    """AnchorNet with the authors' weights, in evaluation mode on the CPU.

    Takes a bare state dict in the released layout or a checkpoint ``{net, acc, epoch, optimizer}``
    around one, with or without DataParallel's ``module.`` before each key. The number of classes is
    that of the file. The shortcuts are cropped at the top left (``skip="top_left"``), as in the
    code that trained the weights; the parameters of block 0 that this code never used are dropped.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint that can be loaded as plain weights, or its keys or shapes are
            not those of AnchorNet (they are listed).
    """
    released, _ = _read(path)
    wanted = AnchorNet(_num_classes(released, path), skip="top_left")
    targets = wanted.state_dict()
    converted: dict[str, Tensor] = {}
    unexpected: list[str] = []
    for key, value in released.items():
        if key.startswith(_UNUSED):
            continue
        layer, _, name = key.rpartition(".")
        target = f"{_LAYERS[layer]}.{name}" if layer in _LAYERS else key
        if target not in targets:
            unexpected.append(key)
            continue
        # Squeeze-and-excitation was written with 1x1 convolutions: (out, in, 1, 1) for our linear.
        if ".excitation." in target and value.dim() == 4:
            value = value.flatten(1)
        converted[target] = value
    theirs = {f"{ours}.": f"{layer}." for layer, ours in _LAYERS.items()}
    missing = [
        next(theirs[o] + key.removeprefix(o) for o in theirs if key.startswith(o))
        for key in targets
        if key not in converted
    ]
    load_whole(wanted, converted, missing, unexpected, path)
    return wanted.eval()


def load_released_classifier(model: nn.Module, path: str | PathLike[str]) -> ReleasedInfo:
    """Loads a released downstream checkpoint into `model`, in place.

    The released files are ``{net, acc, epoch, optimizer}``, their ``net`` with torchvision's names
    (``build_backbone("resnet50", 1000)``, ``build_backbone("densenet201", 1000)``), with or without
    DataParallel's ``module.`` before each key. A bare state dict is taken, too.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint that can be loaded as plain weights, or its keys or shapes are
            not those of `model` (they are listed); `model` is then unchanged.
    """
    released, info = _read(path)
    targets = model.state_dict()
    missing = [key for key in targets if key not in released]
    unexpected = [key for key in released if key not in targets]
    load_whole(model, released, missing, unexpected, path)
    return info


def _read(path: str | PathLike[str]) -> tuple[dict[str, Tensor], ReleasedInfo]:
    """State dict of the file, without `module.`, and what else it says."""
    content = read_weights(path)
    accuracy = epoch = None
    if isinstance(content, Mapping) and "net" in content:
        accuracy, epoch = content.get("acc"), content.get("epoch")
        content = content["net"]
    return plain_state_dict(content, path), ReleasedInfo(
        None if accuracy is None else float(accuracy), None if epoch is None else int(epoch)
    )


def _num_classes(released: Mapping[str, Tensor], path: str | PathLike[str]) -> int:
    weight = released.get("fc.weight")
    if weight is None or weight.dim() != 2:
        raise ValueError(f"{path} is not an AnchorNet: it has no matrix fc.weight")
    return weight.shape[0]

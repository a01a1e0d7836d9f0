"""Reads the checkpoints that the authors of AnchorNet released."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .anchornet import BLOCKS, AnchorNet

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
    _load(wanted, converted, missing, unexpected, path)
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
    _load(model, released, missing, unexpected, path)
    return info


def _read(path: str | PathLike[str]) -> tuple[dict[str, Tensor], ReleasedInfo]:
    """State dict of the file, without `module.`, and what else it says."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # on bytes that are no checkpoint, the unpickler may raise anything
        raise ValueError(f"{path} is not a checkpoint of plain weights: {error}") from error
    accuracy = epoch = None
    if isinstance(content, Mapping) and "net" in content:
        accuracy, epoch = content.get("acc"), content.get("epoch")
        content = content["net"]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict")
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"{path} is not a state dict: {key!r} is a {type(value).__name__}")
        state[key.removeprefix("module.")] = value
    return state, ReleasedInfo(
        None if accuracy is None else float(accuracy), None if epoch is None else int(epoch)
    )


def _num_classes(released: Mapping[str, Tensor], path: str | PathLike[str]) -> int:
    weight = released.get("fc.weight")
    if weight is None or weight.dim() != 2:
        raise ValueError(f"{path} is not an AnchorNet: it has no matrix fc.weight")
    return weight.shape[0]


def _load(
    model: nn.Module,
    state: Mapping[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    path: str | PathLike[str],
) -> None:
    """Loads all or nothing."""
    # Counts batches for a momentum that nobody sets; files from before torch 0.4.1 lack it.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    targets = model.state_dict()
    different = [
        f"{key} {tuple(value.shape)} instead of {tuple(targets[key].shape)}"
        for key, value in state.items()
        if key in targets and value.shape != targets[key].shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": different}
    found = [f"{what}: {_some(keys)}" for what, keys in problems.items() if keys]
    if found:
        raise ValueError(f"{path} does not fit {type(model).__name__}; " + "; ".join(found))
    model.load_state_dict(state, strict=False)


def _some(keys: list[str], most: int = 8) -> str:
    """The first of `keys`, and how many more there are."""
    rest = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + rest

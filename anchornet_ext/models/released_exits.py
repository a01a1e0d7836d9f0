"""Reads the checkpoints of the public code of RANet and MSDNet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from os import PathLike

from torch import Tensor

from .exits import ExitNetwork
from .msdnet import MSDNet, MSDNetConfig, first_scale
from .ranet import RANet, RANetConfig
from .weight_files import load_whole, plain_state_dict, read_weights

#: Beginning of a parameter's name inside a step -> theirs.
_INSIDE = (
    ("reduce.conv.", "net.0."),
    ("reduce.norm.", "net.1."),
    ("spread.conv.", "net.3."),
    ("spread.norm.", "net.4."),
    ("conv.conv.", "0."),  # their large stem is a bare sequence
    ("conv.norm.", "1."),
    ("conv.", "net.0."),
    ("norm.", "net.1."),
)


def load_released_ranet(path: str | PathLike[str], config: RANetConfig) -> RANet:
    """RANet with weights of the authors' code, in evaluation mode on the CPU.

    Takes a bare state dict in the released layout (``FirstLayer``, ``scale_flows``, ``classifier``)
    or a checkpoint that holds one as ``state_dict``, with or without DataParallel's ``module.``
    before each key. The number of classes is that of the file.

    Args:
        path: the file.
        config: the network's shape, which the file does not say; see RANET_PRESETS.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint that can be loaded as plain weights, or its keys or shapes are
            not those of a RANet of this configuration (they are listed).
    """
    state = _read(path)
    network = RANet(_num_classes(state, path), config)
    # Inside a layer, `conv_normal` goes on in the sub-network, `conv_up` comes from the one before.
    names = {step: _ranet_name(step, len(config.scales)) for step in network.steps}
    _load(network, names, {"same.": "conv_normal.", "up.": "conv_up."}, state, path)
    return network.eval()


def load_released_msdnet(path: str | PathLike[str], config: MSDNetConfig) -> MSDNet:
    """MSDNet with weights of its public PyTorch code, in evaluation mode on the CPU.

    Takes files as `load_released_ranet` does, in the layout ``blocks``, ``classifier``.

    Args:
        path: the file.
        config: the network's shape, which the file does not say; see MSDNET_PRESETS.

    Raises:
        FileNotFoundError, ValueError: as `load_released_ranet`.
    """
    state = _read(path)
    network = MSDNet(_num_classes(state, path), config)
    inside = {"same.": "conv_normal.", "finer.": "conv_down."}
    _load(network, _msdnet_names(config), inside, state, path)
    return network.eval()


def _ranet_name(step: str, networks: int) -> str:
    """Theirs for the step of ours."""
    if match := re.fullmatch(r"base(\d+)", step):
        return f"FirstLayer.layers.{networks - int(match[1])}"
    if match := re.fullmatch(r"exit(\d+)", step):
        return f"classifier.{int(match[1]) - 1}"
    match = re.fullmatch(r"net(\d+)_block(\d+)_(layer|end|transition)(\d*)", step)
    assert match is not None
    place = f"scale_flows.{int(match[1]) - 1}.{int(match[2]) - 1}"
    if match[3] == "layer":
        return f"{place}.layers.{int(match[4]) - 1}"
    return f"{place}.{'conv_last' if match[3] == 'end' else 'trans'}"


def _msdnet_names(config: MSDNetConfig) -> dict[str, str]:
    """Our step -> theirs. They count scales from the finest that a layer still has."""
    scales = range(len(config.factors))
    names = {f"stem_scale{scale}": f"blocks.0.0.layers.{scale}" for scale in scales}
    layer = finest_before = 0
    for block, layers in enumerate(config.layers_of_block):
        place = 1 if block == 0 else 0  # the stem is the first of its block
        for _ in range(layers):
            layer += 1
            finest = first_scale(config, layer)
            for scale in scales[finest:]:
                index = scale - finest
                names[f"layer{layer}_scale{scale}"] = f"blocks.{block}.{place}.layers.{index}"
                if finest > finest_before:
                    transition = f"blocks.{block}.{place + 1}.m.{index}"
                    names[f"layer{layer}_scale{scale}_transition"] = transition
            place += 2 if finest > finest_before else 1
            finest_before = finest
        names[f"exit{block + 1}"] = f"classifier.{block}"
    return names


def _load(
    network: ExitNetwork,
    names: Mapping[str, str],
    branches: Mapping[str, str],
    state: Mapping[str, Tensor],
    path: str | PathLike[str],
) -> None:
    """Loads all or nothing.

    Args:
        names: our step -> theirs.
        branches: our beginning inside a step -> theirs.
    """
    converted: dict[str, Tensor] = {}
    missing: list[str] = []
    unexpected = dict.fromkeys(state)
    for key in network.state_dict():
        _, step, inside = key.split(".", 2)
        theirs = f"{names[step]}.{_inside(step, inside, branches)}"
        unexpected.pop(theirs, None)
        if theirs in state:
            converted[key] = state[theirs]
        else:
            missing.append(theirs)
    load_whole(network, converted, missing, list(unexpected), path)


def _inside(step: str, inside: str, branches: Mapping[str, str]) -> str:
    """Theirs for a parameter's name inside a step."""
    begun = ""
    if step.endswith("_end"):
        inside = inside.removeprefix("up.")  # one convolution, no branch
    for ours, theirs in (*branches.items(), ("convolutions.", "m.")):
        if inside.startswith(ours):
            begun, inside = theirs, inside.removeprefix(ours)
    if begun == "m.":
        place, inside = inside.split(".", 1)
        begun = f"m.{place}."
    for ours, theirs in _INSIDE:
        if inside.startswith(ours):
            return begun + theirs + inside.removeprefix(ours)
    return begun + inside


def _read(path: str | PathLike[str]) -> dict[str, Tensor]:
    content = read_weights(path)
    if isinstance(content, Mapping) and "state_dict" in content:
        content = content["state_dict"]
    return plain_state_dict(content, path)


def _num_classes(state: Mapping[str, Tensor], path: str | PathLike[str]) -> int:
    weight = state.get("classifier.0.linear.weight")
    if weight is None or weight.dim() != 2:
        raise ValueError(
            f"{path} is no RANet or MSDNet: it has no matrix classifier.0.linear.weight"
        )
    return weight.shape[0]

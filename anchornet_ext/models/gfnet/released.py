"""Reads the checkpoints that the authors of GFNet released."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike

from torch import Tensor

from anchornet_ext.models.weight_files import load_whole, plain_state_dict, read_weights

from .gfnet import GFNet

#: Released part -> where it is in `GFNet`. What follows has the same names in both.
_PARTS = {
    "model_prime_state_dict": "glance.network.",
    "model_state_dict": "focus.network.",
    "fc": "classifier.",
    "policy": "proposal.",
}
#: Parts of `GFNet` that only its training needs and that were not released.
_TRAINING_ONLY = "heads."


def load_released_gfnet(
    path: str | PathLike[str],
    backbone: str,
    *,
    patch_size: int = 96,
    num_exits: int | None = None,
) -> GFNet:
    """GFNet with the authors' weights, in evaluation mode on the CPU.

    The file is ``{model_prime_state_dict, model_state_dict, fc, policy, ...}``, each a state dict
    with or without DataParallel's ``module.`` before its keys. The number of classes and the sizes
    of the recurrent parts are those of the file. ResNets and DenseNets have torchvision's names.

    Args:
        path: of the file.
        backbone: of both encoders, see `Encoder`.
        patch_size: P, which the file does not say; a wrong one does not fit the proposal network.
        num_exits: T; None: 5 with a recurrent classifier, else as many as there are layers for.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of plain weights, a part is missing (those of the first
            training stage have no policy), or its keys or shapes are not those of such a network
            (they are listed); an unknown backbone.
    """
    content = read_weights(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not GFNet's state dicts")
    absent = [part for part in _PARTS if part not in content]
    if absent:
        raise ValueError(f"{path} is no whole GFNet: it has no {', '.join(absent)}")
    parts = {part: plain_state_dict(content[part], path) for part in _PARTS}
    network = _build(parts, path, backbone, patch_size, num_exits)
    targets = network.state_dict()
    state: dict[str, Tensor] = {}
    unexpected: list[str] = []
    for part, prefix in _PARTS.items():
        for key, value in parts[part].items():
            if prefix + key in targets:
                state[prefix + key] = value
            else:
                unexpected.append(f"{part}: {key}")
    missing = [
        f"{part}: {key.removeprefix(prefix)}"
        for key in targets
        for part, prefix in _PARTS.items()
        if key.startswith(prefix) and key not in state and not key.startswith(_TRAINING_ONLY)
    ]
    load_whole(network, state, missing, unexpected, path)
    return network.eval()


def _build(
    parts: Mapping[str, Mapping[str, Tensor]],
    path: str | PathLike[str],
    backbone: str,
    patch_size: int,
    num_exits: int | None,
) -> GFNet:
    """A network of the sizes that the tensors show."""

    def size(part: str, key: str, dims: tuple[int, ...]) -> tuple[int, ...]:
        value = parts[part].get(key)
        if value is None or value.dim() not in dims:
            raise ValueError(f"{path} is no GFNet: its {part} has no weights {key!r}")
        return tuple(value.shape)

    recurrent = "rnn.weight_hh_l0" in parts["fc"]
    if recurrent:
        classifier_hidden = size("fc", "rnn.weight_hh_l0", (2,))[1]
        num_classes = size("fc", "fc.weight", (2,))[0]
        num_exits = 5 if num_exits is None else num_exits
    else:
        classifier_hidden = 1  # of no meaning here
        num_classes = size("fc", "fc_2.weight", (2,))[0]
        steps = [key for key in parts["fc"] if key.startswith("fc_") and key.endswith(".weight")]
        num_exits = 1 + len(steps) if num_exits is None else num_exits
    return GFNet(
        backbone,
        num_classes,
        num_exits=num_exits,
        patch_size=patch_size,
        recurrent=recurrent,
        classifier_hidden=classifier_hidden,
        policy_conv=len(size("policy", "state_encoder.0.weight", (2, 4))) == 4,
        policy_hidden=size("policy", "gru.weight_hh_l0", (2,))[1],
    )

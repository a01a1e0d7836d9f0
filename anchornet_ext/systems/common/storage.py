"""A network with exits as a folder: config.json and weights.safetensors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from anchornet_ext._files import write_whole
from anchornet_ext._formats import require_version
from anchornet_ext.data.transforms import Preprocessing
from anchornet_ext.inference.storage import checksum
from anchornet_ext.policy.exit_policy import ExitPolicy

FORMAT = "anchornet_ext exit network"
FORMAT_VERSION = 1
CONFIG = "config.json"
WEIGHTS = "weights.safetensors"
_KEYS = {
    *("format", "format_version", "system", "options", "num_classes", "class_names"),
    *("preprocessing", "macs_per_exit", "policy", "files"),
}


@dataclass(frozen=True)
class Saved:
    """The configuration of a saved network.

    Attributes:
        system: name of the system.
        options: of the system, as JSON has them.
        class_names: of the n classes, in the order of the logits.
        preprocessing: how a photo becomes its input.
        macs_per_exit: (T,) multiply-adds.
        policy: when images leave unless told otherwise; None: never early.
        checksum: the same for the same weights and settings, whatever the policy.
    """

    system: str
    options: Mapping[str, Any]
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    macs_per_exit: tuple[int, ...]
    policy: ExitPolicy | None = None
    checksum: str = ""


def save(folder: Path, network: nn.Module, saved: Saved) -> None:
    """Writes a network into `folder`, which is made if need be, each file whole.

    The configuration comes last and has the checksum of the weights, so that a save which was cut
    short is noticed when loading.
    """
    # safetensors refuses tensors that share memory, as tied weights do.
    weights = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in network.state_dict().items()
    }
    blob = safetensors.torch.save(weights, metadata={"format": "pt"})
    config = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "system": saved.system,
        "options": dict(saved.options),
        "num_classes": len(saved.class_names),
        "class_names": list(saved.class_names),
        "preprocessing": saved.preprocessing.to_dict(),
        "macs_per_exit": list(saved.macs_per_exit),
        "policy": None if saved.policy is None else saved.policy.to_dict(),
        "files": {WEIGHTS: {"bytes": len(blob), "sha256": hashlib.sha256(blob).hexdigest()}},
    }
    text = _as_text(config)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / WEIGHTS, blob)
    write_whole(folder / CONFIG, text)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of any saved model, whatever its format.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not a JSON object.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder} is not a saved model: it has no {CONFIG}") from None
    except (ValueError, RecursionError) as error:  # also UnicodeDecodeError
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} does not hold a JSON object")
    return config


def read(folder: Path) -> Saved:
    """The configuration that `save` wrote.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not of this format, of a newer version, or has a value that is missing,
            unknown or wrong.
    """
    config = read_config(folder)
    path = folder / CONFIG
    if config.get("format") != FORMAT:
        raise ValueError(f"{path} does not describe an {FORMAT}, but {config.get('format')!r}")
    require_version(config, FORMAT_VERSION, str(path))
    for what, keys in (("has no", _KEYS - set(config)), ("has unknown", set(config) - _KEYS)):
        if keys:
            raise ValueError(f"{path} {what} {', '.join(sorted(keys))}")
    try:
        policy = config["policy"]
        saved = Saved(
            system=str(config["system"]),
            options=dict(config["options"]),
            class_names=tuple(map(str, config["class_names"])),
            preprocessing=Preprocessing.from_dict(config["preprocessing"]),
            macs_per_exit=tuple(map(int, config["macs_per_exit"])),
            policy=None if policy is None else ExitPolicy.from_dict(policy),
            checksum=checksum(config),
        )
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    if len(saved.class_names) != config["num_classes"]:
        raise ValueError(
            f"{path} has {len(saved.class_names)} class names for {config['num_classes']} classes"
        )
    return saved


def load_weights(network: nn.Module, folder: Path) -> None:
    """Loads the weights that `save` wrote into `network`, all of them.

    Raises:
        FileNotFoundError: there are none.
        ValueError: they are damaged, of another save, or do not fit.
    """
    path = folder / WEIGHTS
    try:
        blob = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder} is not complete: it has no {path.name}") from None
    try:
        expected = read_config(folder)["files"][WEIGHTS]["sha256"]
    except (KeyError, TypeError):
        raise ValueError(f"{folder / CONFIG} has no checksum of {WEIGHTS}") from None
    if hashlib.sha256(blob).hexdigest() != expected:
        raise ValueError(
            f"{path} is corrupt or of another save: its {len(blob)} bytes do not have the checksum "
            f"in {CONFIG}"
        )
    try:
        network.load_state_dict(safetensors.torch.load(blob))
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(f"{path} does not fit {CONFIG}: {error}") from error


def install_policy(folder: Path, policy: ExitPolicy | None) -> None:
    """Makes `policy` the one that the network in `folder` uses by itself; None takes it away.

    Raises:
        FileNotFoundError, ValueError: as `read`, or the policy is for other exits.
    """
    saved = read(folder)
    if policy is not None:
        policy.require_exits(len(saved.macs_per_exit))
    config = read_config(folder)
    config["policy"] = None if policy is None else policy.to_dict()
    write_whole(folder / CONFIG, _as_text(config))


def _as_text(config: Mapping[str, Any]) -> bytes:
    text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # Classes are named by folders, whose names need not be text: JSON reads this as the same name.
    return text.encode(errors="backslashreplace")

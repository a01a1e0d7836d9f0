"""Finding out what a saved model is, and loading it."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import torch

from anchornet_ext.evaluation.systems import ExitSystem, TwoStageSystem
from anchornet_ext.inference.storage import FORMAT as TWO_STAGE
from anchornet_ext.inference.storage import install_policy as install_two_stage_policy
from anchornet_ext.inference.storage import read_config as read_two_stage_config
from anchornet_ext.inference.storage import resolve
from anchornet_ext.policy.exit_policy import ExitPolicy

from . import storage
from .system import MODEL, display_name


def model_folder(folder_or_name: str | PathLike[str]) -> Path:
    """The folder of a saved model, given that, the run that it is in, or a bundled model's name.

    Raises:
        FileNotFoundError: there is none; of a run that is not finished, it says so.
    """
    return _inside(resolve(folder_or_name))


def _inside(folder: Path) -> Path:
    """The folder itself, or that of the model in the run that it is of."""
    if (folder / MODEL / storage.CONFIG).is_file():
        return folder / MODEL
    if (folder / storage.CONFIG).is_file() and "stages" in storage.read_config(folder):
        raise FileNotFoundError(
            f"{folder} is a run that is not finished: it has no {MODEL}; go on with "
            "`anchornet train --resume`"
        )
    return folder


def load_system(folder_or_name: str | PathLike[str], device: torch.device) -> ExitSystem:
    """Any saved model, ready to be evaluated, whatever system it is of.

    Args:
        folder_or_name: see `model_folder`.
        device: where it is to run.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: it is damaged, of another format or of an unknown system.
        ImportError: there are no operators for the device.
    """
    from anchornet_ext.systems import find_system

    folder = model_folder(folder_or_name)
    config = storage.read_config(folder)
    kind = config.get("format")
    if kind == TWO_STAGE:
        # By its own name, if it is a bundled one.
        inside = folder.name == MODEL and Path(folder_or_name).name != MODEL
        name = display_name("AnchorNet", folder)
        return TwoStageSystem.load(folder if inside else folder_or_name, device, name)
    if kind == storage.FORMAT:
        return find_system(str(config.get("system"))).load(folder, device)
    raise ValueError(
        f"{folder / storage.CONFIG} describes neither an {TWO_STAGE} nor an {storage.FORMAT}, but "
        f"{kind!r}"
    )


def read_model(folder: Path) -> dict[str, Any]:
    """The checked configuration of a saved model, with its "macs_per_exit".

    Raises:
        FileNotFoundError, ValueError: there is no such model, or it is damaged.
    """
    folder = _inside(folder)
    config = storage.read_config(folder)
    if config.get("format") == storage.FORMAT:
        storage.read(folder)
        return config
    config = read_two_stage_config(folder)
    # Of format version 1, say, which had no costs.
    config.setdefault("macs_per_exit", [0] * (1 + int(config["num_patches"])))
    return config


def install_policy(folder: Path, policy: ExitPolicy | None) -> None:
    """Makes `policy` the one that a saved model uses by itself; None takes it away.

    Raises:
        FileNotFoundError, ValueError: there is no such model, or the policy is for other exits.
    """
    folder = _inside(folder)
    if storage.read_config(folder).get("format") == storage.FORMAT:
        storage.install_policy(folder, policy)
    else:
        install_two_stage_policy(folder, policy)

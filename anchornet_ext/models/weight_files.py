"""What reading any released checkpoint needs: plain weights only, and all of them or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn


def read_weights(path: str | PathLike[str]) -> Any:
    """The content of a torch file, on the CPU; nothing in it is executed.

    Raises:
        FileNotFoundError, OSError: it cannot be read.
        ValueError: it is no file of plain weights.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # on bytes that are no checkpoint, the unpickler may raise anything
        raise ValueError(f"{path} is not a checkpoint of plain weights: {error}") from error


def plain_state_dict(content: Any, path: str | PathLike[str]) -> dict[str, Tensor]:
    """`content` as a state dict, without DataParallel's `module.` before its keys.

    Raises:
        ValueError: it is none; the message names the file.
    """
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict")
    state: dict[str, Tensor] = {}
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"{path} is not a state dict: {key!r} is a {type(value).__name__}")
        state[key.removeprefix("module.")] = value
    return state


def load_whole(
    model: nn.Module,
    state: Mapping[str, Tensor],
    missing: Sequence[str],
    unexpected: Sequence[str],
    path: str | PathLike[str],
) -> None:
    """Loads all of `state` into `model`, or nothing.

    Args:
        state: with the names of `model`.
        missing, unexpected: keys that were not found in the file and that `model` has not, in the
            file's own names.
        path: for messages.

    Raises:
        ValueError: there are such keys, or a tensor has another shape; they are listed.
    """
    # Counts batches for a momentum that nobody sets; files from before torch 0.4.1 lack it.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    targets = model.state_dict()
    different = [
        f"{key} {tuple(value.shape)} instead of {tuple(targets[key].shape)}"
        for key, value in state.items()
        if key in targets and value.shape != targets[key].shape
    ]
    problems = {
        "missing": missing,
        "unexpected": list(unexpected),
        "of another shape": different,
    }
    found = [f"{what}: {_some(keys)}" for what, keys in problems.items() if keys]
    if found:
        raise ValueError(f"{path} does not fit {type(model).__name__}; " + "; ".join(found))
    model.load_state_dict(state, strict=False)


def _some(keys: list[str], most: int = 8) -> str:
    """The first of `keys`, and how many more there are."""
    rest = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + rest

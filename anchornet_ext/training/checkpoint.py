"""Files of a run, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from anchornet_ext._files import replacing
from anchornet_ext.models.weight_files import load_whole


@contextmanager
def _made(path: Path) -> Iterator[Path]:
    """A file to write in the stead of `path`, whose folder is made if need be (see `replacing`).

    What the libraries say of a file that cannot be written becomes an OSError like any other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        try:
            yield temporary
        except (RuntimeError, SafetensorError) as error:  # torch's and safetensors' own
            raise OSError(f"{path} could not be written: {str(error).splitlines()[0]}") from error


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path`."""
    with _made(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes `values` to `path`."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`, {} where there is no such file.

    Raises:
        ValueError: the file is not a JSON object.
    """
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{str(path)!r} does not hold a JSON object")
    return values


def save_weights(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a state dict as safetensors; equal ones as equal bytes."""
    # safetensors refuses tensors that share memory, as tied weights do
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in state.items()}
    with _made(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, dict(metadata))
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Brings the metadata of a safetensors file, which come in a random order, into that of names.

    The file begins with the length of its header, 8 bytes, and the header, JSON padded by spaces.
    """
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        content = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(content) <= size:  # the same characters; longer only if others were escaped
            file.seek(8)
            file.write(content.ljust(size))


def load_weights(module: nn.Module, path: Path) -> None:
    """Loads a safetensors state dict into `module`, every key of it.

    Raises:
        ValueError: the file is missing, damaged, or of another architecture or number of classes.
    """
    if not path.is_file():
        raise ValueError(f"there are no weights at {str(path)!r}")
    try:
        state = safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} is not a safetensors file: {error}") from error
    wanted = module.state_dict()
    missing = [key for key in wanted if key not in state]
    load_whole(module, state, missing, [key for key in state if key not in wanted], path)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a training state (tensors, numbers, strings, lists and dicts of them)."""
    with _made(path) as temporary:
        torch.save(dict(state), temporary)


def load_state(path: Path) -> dict[str, Any] | None:
    """The training state in `path`, on the CPU; None where there is no such file.

    Raises:
        ValueError: the file is damaged or holds more than data.
    """
    if not path.is_file():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything from EOFError to UnpicklingError
        raise ValueError(f"{str(path)!r} is not a training state: {error}") from error
    return state

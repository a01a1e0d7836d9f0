"""Files of weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from anchornet_ext.training.checkpoint import save_weights


def test_equal_weights_are_equal_bytes(tmp_path: Path) -> None:
    """Whatever the order in which tensors and metadata are named."""
    state = {f"layer{n}.weight": torch.randn(2, n + 1) for n in range(5)}
    metadata = {f"name{n}": f'an "é" of {n}\n\\' for n in range(8)}
    paths = [tmp_path / f"{n}.safetensors" for n in range(4)]
    for n, path in enumerate(paths):
        order = reversed if n % 2 else iter
        save_weights(path, dict(order(list(state.items()))), dict(order(list(metadata.items()))))
    assert len({path.read_bytes() for path in paths}) == 1
    with safe_open(str(paths[0]), "pt") as file:
        assert file.metadata() == metadata
        assert set(file.keys()) == set(state)
        assert all(torch.equal(file.get_tensor(name), value) for name, value in state.items())


def test_weights_may_do_without_metadata(tmp_path: Path) -> None:
    save_weights(tmp_path / "a.safetensors", {"x": torch.ones(2)}, {})
    with safe_open(str(tmp_path / "a.safetensors"), "pt") as file:
        assert torch.equal(file.get_tensor("x"), torch.ones(2))

"""Files of weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from anchornet_ext.training.checkpoint import load_weights, save_weights


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


def test_weights_that_do_not_fit_are_told_in_a_few_words(tmp_path: Path) -> None:
    """A network of another kind has hundreds of other tensors."""
    save_weights(tmp_path / "a.safetensors", {f"layer{n}": torch.ones(2) for n in range(99)}, {})
    layer = torch.nn.Linear(2, 3)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(
        ValueError, match=r"does not fit Linear; missing: weight, bias; un"
    ) as error:
        load_weights(layer, tmp_path / "a.safetensors")
    assert str(error.value).endswith(" and 91 more")
    save_weights(
        tmp_path / "b.safetensors", {"weight": torch.ones(4, 2), "bias": torch.ones(3)}, {}
    )
    with pytest.raises(ValueError, match=r"another shape: weight \(4, 2\) instead of \(3, 2\)"):
        load_weights(layer, tmp_path / "b.safetensors")
    for name, value in layer.state_dict().items():  # not even those that fit
        assert torch.equal(value, before[name])

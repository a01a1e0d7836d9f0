"""A result whose attributes are made when they are asked for is still a plain dataclass."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
import torch
from tiny_networks import noise, tiny_classifier
from torch import Tensor

from anchornet_ext.inference import TwoStageClassifier
from anchornet_ext.inference.classification import Classification
from anchornet_ext.policy.exit_policy import ExitPolicy

NAMES = [field.name for field in fields(Classification)]
LIMITS = (0.999999, 0.998, 0.99, 0.9999)
#: Exits that are mixed, one and the same in the middle, the last, and the glance.
WAYS: list[dict[str, Any]] = [
    {"policy": ExitPolicy(LIMITS)},
    {"policy": ExitPolicy(LIMITS, (3.0, 1.5, 0.5, 1.0, 2.0), "surest")},
    {"exit_at": 3},
    {"exit_at": 5},
    {"exit_at": 1},
]


@functools.cache
def model() -> TwoStageClassifier:
    return tiny_classifier(1).fold()


def result(way: dict[str, Any]) -> Classification:
    """The same for the same way."""
    return model().classify(noise(6, (112, 112), seed=1), **way)


def same(first: dict[str, Any], second: dict[str, Any], names: list[str] = NAMES) -> None:
    for name in names:
        torch.testing.assert_close(
            first[name], second[name], rtol=0, atol=0, equal_nan=True, msg=name
        )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "twin", [copy.deepcopy, copy.copy, replace, lambda one: pickle.loads(pickle.dumps(one))]
)
def test_a_copy_says_the_same(
    way: dict[str, Any], twin: Callable[[Classification], Classification]
) -> None:
    same(asdict(twin(result(way))), asdict(result(way)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("written", NAMES)
def test_writing_to_one_attribute_changes_no_other(way: dict[str, Any], written: str) -> None:
    expected, changed = asdict(result(way)), result(way)
    value = getattr(changed, written)
    if isinstance(value, Tensor):
        value += 1
        assert getattr(changed, written) is value
    same(asdict(changed), expected, [name for name in NAMES if name != written])
    same(asdict(result(way)), expected)  # nor the results of the next call


def test_the_ways_are_what_they_should_be() -> None:
    of_each = [result(way) for way in WAYS]
    assert [len(one.exit_step.unique()) > 1 for one in of_each] == [True, True, False, False, False]
    assert of_each[1].answer_step.tolist() != of_each[1].exit_step.tolist()


def test_there_is_nothing_else_to_ask_for() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lable'"):
        _ = result({}).lable  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="no attribute 'label'"):
        _ = Classification.__new__(Classification).label

"""ExitPolicy: what it accepts, and its file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchornet_ext.policy.exit_policy import ExitPolicy


@st.composite
def policies(draw: st.DrawFn) -> ExitPolicy:
    num_exits = draw(st.integers(1, 6))
    temperature = st.floats(1e-3, 1e3)
    return ExitPolicy(
        tuple(
            draw(
                st.lists(st.floats(allow_nan=False), min_size=num_exits - 1, max_size=num_exits - 1)
            )
        ),
        draw(st.none() | st.tuples(*[temperature] * num_exits)),
        draw(st.sampled_from(["last", "surest"])),
        draw(st.dictionaries(st.text(max_size=5), st.integers() | st.text() | st.lists(st.none()))),
    )


@given(policy=policies())
def test_a_file_brings_everything_back(
    policy: ExitPolicy, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("policy") / "policy.json"
    policy.save(path)
    assert ExitPolicy.load(path) == policy
    # Any JSON reader takes it: no Infinity, no NaN.
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))


def test_infinities_become_thresholds_that_decide_the_same() -> None:
    policy = ExitPolicy((math.inf, -math.inf, 0.5))
    assert policy.thresholds == (1.0, -1.0, 0.5)
    assert policy.num_exits == 4


def test_arrays_of_numbers_are_taken() -> None:
    policy = ExitPolicy(np.array([0.5, 0.25]), np.array([1, 2, 3], dtype=np.float32))
    assert policy.thresholds == (0.5, 0.25)
    assert policy.temperatures == (1.0, 2.0, 3.0)
    assert [policy.temperature(t) for t in (1, 2, 3)] == [1.0, 2.0, 3.0]
    assert ExitPolicy((0.5,)).temperature(2) == 1.0


def test_about_is_what_comes_back_from_json() -> None:
    assert ExitPolicy((), about={"cost": (1, 2)}).about == {"cost": [1, 2]}


def test_the_number_of_exits_is_checked() -> None:
    ExitPolicy((0.5, 0.5)).require_exits(3)
    with pytest.raises(ValueError, match="5 exits need 4 thresholds, got 2"):
        ExitPolicy((0.5, 0.5)).require_exits(5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"thresholds": (0.5, math.nan)}, ValueError, "NaN"),
        ({"thresholds": 0.5}, TypeError, "thresholds must be a sequence of numbers, got 0.5"),
        ({"thresholds": "0.5"}, TypeError, "got '0.5'"),
        ({"thresholds": ("0.5",)}, TypeError, "thresholds must be numbers, got '0.5'"),
        ({"thresholds": (True,)}, TypeError, "got True"),
        ({"thresholds": (10**400,)}, ValueError, "thresholds must be numbers"),
        ({"temperatures": (1.0,)}, ValueError, "for 2 exits, got 1 temperatures"),
        ({"temperatures": (1.0, 0.0)}, ValueError, r"positive and finite, got \[1.0, 0.0\]"),
        ({"temperatures": (1.0, math.nan)}, ValueError, "positive and finite"),
        ({"temperatures": (1.0, math.inf)}, ValueError, "positive and finite"),
        ({"answer": "first"}, ValueError, "last, surest, got 'first'"),
        ({"about": {"x": math.nan}}, ValueError, "what JSON can"),
        ({"about": {"x": {1, 2}}}, ValueError, "what JSON can"),
        ({"about": 3}, TypeError, "mapping, got int"),
    ],
)
def test_refuses(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ExitPolicy(**{"thresholds": (0.5,), **options})


GOOD = ExitPolicy((0.5,), (1.0, 2.0), "surest", {"budget": 1e9}).to_dict()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[1]", "does not describe"),
        ({**GOOD, "format": "something"}, "does not describe"),
        ({**GOOD, "format_version": "1"}, "format version '1'"),
        ({**GOOD, "format_version": True}, "format version True"),
        ({**GOOD, "format_version": 2}, "format version 2.*update the package"),
        ({key: value for key, value in GOOD.items() if key != "answer"}, "has no answer"),
        ({**GOOD, "treshold": 1}, "unknown treshold"),
        ({**GOOD, "thresholds": None}, "thresholds must be a sequence of numbers, got None"),
        ({**GOOD, "thresholds": [[0.5]]}, r"thresholds must be numbers, got \[0.5\]"),
        ({**GOOD, "thresholds": [math.nan]}, "NaN"),
        ({**GOOD, "thresholds": [0.5, 0.5]}, "for 3 exits, got 2 temperatures"),
        ({**GOOD, "answer": ["last"]}, "answer must be one of"),
        ({**GOOD, "about": None}, "about must be a mapping"),
    ],
)
def test_a_file_that_is_none_says_so_with_its_name(
    tmp_path: Path, content: Any, message: str
) -> None:
    path = tmp_path / "policy.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(ValueError, match=rf"policy\.json.*{message}"):
        ExitPolicy.load(path)


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ExitPolicy.load(tmp_path / "nowhere.json")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "policy.json"
    ExitPolicy((0.5,)).save(path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        ExitPolicy((0.7,)).save(path)
    assert ExitPolicy.load(path).thresholds == (0.5,)
    assert [file.name for file in tmp_path.iterdir()] == ["policy.json"]

"""When an image leaves and with which answer: what is fitted on an exit table, as a small file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from anchornet_ext._files import write_whole
from anchornet_ext._formats import require_version

FORMAT = "anchornet_ext exit policy"
FORMAT_VERSION = 1
_KEYS = {"format", "format_version", "thresholds", "temperatures", "answer", "about"}

_FLOAT32 = np.finfo(np.float32)  # what the confidences are computed in

Answer = Literal["last", "surest"]
ANSWERS: tuple[Answer, ...] = get_args(Answer)


@dataclass(frozen=True)
class ExitPolicy:
    """The decisions of Algorithm 1 for a system of T exits.

    Attributes:
        thresholds: T - 1 floats. An image leaves at the first exit t < T where its confidence is
            above thresholds[t - 1], and at exit T in any case. 1 or more never lets an image leave,
            below 0 always does; infinities are stored as 1 and -1, which decide the same.
        temperatures: T positive numbers (of float32) by which the logits are divided before the
            softmax at each exit, or None: all are 1. Under the criterion "logits" they change how
            sure a prediction is and not the prediction.
        answer: "last": the answer of an image is the prediction at the exit where it leaves.
            "surest": that of the exit with the highest confidence so far, of equal ones the later.
        about: where the numbers come from (table, budget, expected accuracy and cost, method),
            anything that JSON can hold. Nothing is decided by it.

    Raises:
        ValueError: a threshold that is NaN, a temperature that is not positive and finite, other
            than T temperatures, an unknown answer rule, or `about` holds what JSON cannot.
        TypeError: something that is not a number where one is needed.
    """

    thresholds: tuple[float, ...]
    temperatures: tuple[float, ...] | None = None
    answer: Answer = "last"
    about: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        thresholds = _numbers("thresholds", self.thresholds)
        if any(math.isnan(value) for value in thresholds):
            raise ValueError(f"a threshold is NaN: {list(thresholds)}")
        # JSON has no infinities.
        thresholds = tuple(
            math.copysign(1.0, value) if math.isinf(value) else value for value in thresholds
        )
        object.__setattr__(self, "thresholds", thresholds)
        if self.temperatures is not None:
            temperatures = _numbers("temperatures", self.temperatures)
            if len(temperatures) != self.num_exits:
                raise ValueError(
                    f"{len(thresholds)} thresholds are for {self.num_exits} exits, "
                    f"got {len(temperatures)} temperatures: {list(temperatures)}"
                )
            if not all(_FLOAT32.tiny <= value <= _FLOAT32.max for value in temperatures):
                raise ValueError(
                    f"temperatures must be positive and finite, got {list(temperatures)}"
                )
            object.__setattr__(self, "temperatures", temperatures)
        if self.answer not in ANSWERS:
            raise ValueError(f"answer must be one of {', '.join(ANSWERS)}, got {self.answer!r}")
        if not isinstance(self.about, Mapping):
            raise TypeError(f"about must be a mapping, got {type(self.about).__name__}")
        try:
            about = json.loads(json.dumps(dict(self.about), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"about must hold what JSON can: {error}") from error
        object.__setattr__(self, "about", about)

    @classmethod
    def never(cls, num_exits: int) -> ExitPolicy:
        """The policy under which every image goes to the last exit."""
        return cls((1.0,) * (num_exits - 1))

    @property
    def num_exits(self) -> int:
        """T, the exits of the systems that it is for."""
        return len(self.thresholds) + 1

    def require_exits(self, num_exits: int) -> None:
        """Raises ValueError unless this policy is for `num_exits` exits."""
        if num_exits != self.num_exits:
            raise ValueError(
                f"{num_exits} exits need {num_exits - 1} thresholds, got "
                f"{len(self.thresholds)}: {list(self.thresholds)}"
            )

    def temperature(self, exit_number: int) -> float:
        """The temperature at exit 1, ..., T."""
        return 1.0 if self.temperatures is None else self.temperatures[exit_number - 1]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; `from_dict` is the inverse."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "thresholds": list(self.thresholds),
            "temperatures": None if self.temperatures is None else list(self.temperatures),
            "answer": self.answer,
            "about": dict(self.about),
        }

    @classmethod
    def from_dict(cls, values: Any) -> ExitPolicy:
        """The policy that `to_dict` described.

        Raises:
            ValueError: not a description of a policy, one of a newer version, or with a value that
                is missing, unknown or wrong.
        """
        if not isinstance(values, Mapping) or values.get("format") != FORMAT:
            raise ValueError(f"this does not describe an {FORMAT}")
        require_version(values, FORMAT_VERSION, "the exit policy")
        for what, keys in (("has no", _KEYS - set(values)), ("has unknown", set(values) - _KEYS)):
            if keys:
                raise ValueError(f"the exit policy {what} {', '.join(sorted(map(str, keys)))}")
        try:
            return cls(
                values["thresholds"], values["temperatures"], values["answer"], values["about"]
            )
        except TypeError as error:
            raise ValueError(str(error)) from error

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the policy as a JSON file, whole or not at all."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        # File names in `about` need not be text: JSON reads this as the same name.
        write_whole(Path(path), text.encode(errors="backslashreplace"))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> ExitPolicy:
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a valid exit policy; the message names the file and what is wrong.
        """
        blob = Path(path).read_bytes()
        try:
            values = json.loads(blob)
        except (ValueError, RecursionError) as error:  # also UnicodeDecodeError
            raise ValueError(f"{path} is not JSON: {error}") from error
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def require_policy(policy: object, num_exits: int) -> None:
    """
    Raises:
        TypeError: `policy` is no ExitPolicy, but the name of its file, say.
        ValueError: it is for another number of exits than `num_exits`.
    """
    if not isinstance(policy, ExitPolicy):
        hint = "; ExitPolicy.load reads a file" if isinstance(policy, (str, PathLike)) else ""
        raise TypeError(f"policy must be an ExitPolicy, got {policy!r}{hint}")
    policy.require_exits(num_exits)


def _numbers(name: str, values: Iterable[float]) -> tuple[float, ...]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a sequence of numbers, got {values!r}")
    numbers = list(values)
    for value in numbers:
        # NumPy's and torch's scalars are numbers here; text and booleans are not.
        if isinstance(value, (str, bytes, bool)) or not hasattr(value, "__float__"):
            raise TypeError(f"{name} must be numbers, got {value!r}")
    try:
        return tuple(float(value) for value in numbers)
    except (OverflowError, ValueError) as error:  # an integer of hundreds of digits, an array
        raise ValueError(f"{name} must be numbers, got {numbers!r:.80}: {error}") from error

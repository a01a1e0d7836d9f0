"""Amounts as people write them on a command line: 1.25G, 74%, 3ms."""

from __future__ import annotations

import math

_PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_MILLISECONDS = {"us": 1e-3, "ms": 1.0, "s": 1e3}


def short(value: float) -> str:
    """A number as a person types it, to six digits: 74M, 1.25G, 0.5."""
    rounded = float(f"{value:.6g}")
    prefix = max((p for p in _PREFIXES if abs(rounded) >= _PREFIXES[p]), key=_scale, default="")
    return f"{rounded / _PREFIXES[prefix]:.6g}{prefix}"


def _scale(prefix: str) -> float:
    return _PREFIXES[prefix]


def macs(text: str) -> float:
    """Multiply-adds: a number, possibly with k, M, G or T, possibly with "MACs" behind.

    Raises:
        ValueError: it is none, or not positive and finite.
    """
    number = text.strip()
    for unit in ("MACs", "MAC", "macs"):
        number = number.removesuffix(unit).rstrip()
    prefix = number[-1:] if number[-1:] in _PREFIXES else ""
    value = _number(number.removesuffix(prefix)) * _PREFIXES[prefix]
    if not 0 < value < math.inf:
        raise ValueError(f"{text!r} is no number of multiply-adds, such as 1.25G, 800M or 1.25e9")
    return value


def share(text: str) -> float:
    """A share: 0.74 or 74%.

    Raises:
        ValueError: it is none, or not above 0 and at most 1.
    """
    number = text.strip()
    percent = number.endswith("%")
    value = _number(number.removesuffix("%")) / (100 if percent else 1)
    if not percent and 1 < value <= 100:
        raise ValueError(f"{text!r} is above 1; did you mean {text.strip()}%?")
    if not 0 < value <= 1:
        raise ValueError(f"{text!r} is no share, such as 0.74 or 74%")
    return value


def milliseconds(text: str) -> float:
    """A time with its unit (us, ms or s), in milliseconds.

    Raises:
        ValueError: it is none, has no unit, or is not positive and finite.
    """
    number = text.strip()
    unit = next((unit for unit in _MILLISECONDS if number.endswith(unit)), None)
    value = math.nan if unit is None else _number(number.removesuffix(unit)) * _MILLISECONDS[unit]
    if not 0 < value < math.inf:
        raise ValueError(f"{text!r} is no time with its unit, such as 3ms, 250us or 0.02s")
    return value


def _number(text: str) -> float:
    """NaN where it is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan

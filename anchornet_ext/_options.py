"""Settings as frozen dataclasses: each field is a flag, an entry of a JSON file, and is checked.

A field is made by `option`. `add_options` makes flags of the fields, `read_options` makes the
dataclass of the flags; its `__post_init__` checks the values, with `need`.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import field, fields
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

#: `Action = _ArgumentGroup | ArgumentParser`, which have no common public type.
Group = Any


def option(
    default: Any,
    text: str,
    choices: Sequence[str] | None = None,
    count: int | None = None,
    *,
    convert: Callable[[str], Any] | None = None,
    metavar: str = "X",
    required: bool = False,
    start: bool = False,
) -> Any:
    """A field of settings.

    Args:
        default: its value unless told otherwise; a tuple for several values.
        text: what it is, for --help; the default is added.
        choices: the words it may be.
        count: how many values the flag takes; -1: one or more; None: one.
        convert: from the flag's text; None: the type of the default.
        metavar: what stands for the value in --help.
        required: whether the flag must be given.
        start: whether it says only what training starts from, and nothing of what results.
    """
    metadata = {
        "help": text,
        "choices": choices,
        "count": count,
        "convert": convert,
        "metavar": metavar,
        "required": required,
        "start": start,
    }
    return field(default=default, metadata=metadata)


def flag_of(name: str, prefix: str = "") -> str:
    """The flag of a field: `--PREFIX-NAME`."""
    return "--" + "-".join(part for part in (prefix, name.replace("_", "-")) if part)


def need(holds: bool, name: str, wanted: str, value: object) -> None:
    """Raises ValueError unless it holds, naming the field's flag and its value."""
    if not holds:
        raise ValueError(f"{flag_of(name)} must be {wanted}, not {value}")


def add_options(
    group: Group, defaults: Any, prefix: str = "", without: Collection[str] = ()
) -> None:
    """Adds a flag for every field of `defaults` but those in `without`.

    Args:
        group: a parser or one of its groups.
        defaults: the dataclass, or an instance of it whose values are the defaults.
        prefix: of the flags and, with an underscore, of their places in the namespace.
        without: names of fields that are no flags.
    """
    for item in fields(defaults):
        if item.name in without:
            continue
        value = item.default if isinstance(defaults, type) else getattr(defaults, item.name)
        known = item.metadata
        options: dict[str, Any] = {"dest": _place(item.name, prefix), "default": value}
        options["help"] = _with_default(known["help"], value, known["required"])
        if isinstance(value, bool):
            options["action"] = argparse.BooleanOptionalAction
        else:
            # The field's own default: an instance may well say 5 where any float is meant.
            options["type"] = known["convert"] or _type_of(item.default)
            options["choices"] = known["choices"]
            options["required"] = known["required"]
            count = known["count"]
            if count is not None:
                options["nargs"] = "+" if count < 0 else count
            if known["choices"] is None:
                options["metavar"] = known["metavar"]
        group.add_argument(flag_of(item.name, prefix), **options)


def read_options(args: argparse.Namespace, defaults: T | type[T], prefix: str = "") -> T:
    """The settings that the flags of `add_options` say.

    Raises:
        ValueError: a value that the dataclass refuses.
    """
    given: dict[str, Any] = {}
    for item in fields(defaults):  # type: ignore[arg-type]
        place = _place(item.name, prefix)
        if hasattr(args, place):
            value = getattr(args, place)
            given[item.name] = tuple(value) if isinstance(value, list) else value
    if isinstance(defaults, type):
        return defaults(**given)
    return dataclasses.replace(defaults, **given)  # type: ignore[type-var]


def to_json(settings: Any, *, start: bool = True) -> dict[str, Any]:
    """The fields, ready for JSON; with `start` False, without those that are marked so."""
    values = {item.name: getattr(settings, item.name) for item in fields(settings)
              if start or not item.metadata.get("start")}  # fmt: skip
    return {
        key: list(value) if isinstance(value, tuple) else _plain(value)
        for key, value in values.items()
    }


def from_json(kind: type[T], values: Mapping[str, Any]) -> T:
    """The inverse of `to_json`; what is missing takes its default.

    Raises:
        ValueError: an unknown entry, or a value that `kind` refuses.
    """
    known = {item.name: item for item in fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"unknown setting(s): {', '.join(unknown)}")
    made = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
    try:
        return kind(**made)
    except TypeError as error:  # a word where a number is compared, say
        raise ValueError(f"a setting is of a wrong type: {error}") from error


def _place(name: str, prefix: str) -> str:
    return f"{prefix}_{name}" if prefix else name


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _type_of(value: Any) -> Any:
    if isinstance(value, tuple):
        return type(value[0])
    return str if value is None else type(value)


def _with_default(text: str, value: Any, required: bool) -> str:
    if required or value is None:
        shown = text
    else:
        several = value if isinstance(value, tuple) else (value,)
        words = [f"{one:g}" if isinstance(one, float) else str(one) for one in several]
        shown = f"{text} ({' '.join(words)})"
    return shown.replace("%", "%%")

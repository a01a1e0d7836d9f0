"""The flags of `anchornet train` that depend on the system."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from anchornet_ext._options import add_options
from anchornet_ext.training.config import add_stage_arguments

from .system import System

DEFAULT_SYSTEM = "anchornet"


def chosen_system(parser: argparse.ArgumentParser, words: Sequence[str]) -> System:
    """The system that the words of a command line choose; ends the program if there is none."""
    from anchornet_ext.systems import find_system

    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--system", nargs="?", default=DEFAULT_SYSTEM)
    name = first.parse_known_args([word for word in words if word not in ("-h", "--help")])[
        0
    ].system
    try:
        return find_system(name or DEFAULT_SYSTEM)  # without a value, the whole parser says so
    except ValueError as error:
        parser.error(f"argument --system: {error}")


def add_system_arguments(parser: argparse.ArgumentParser, system: System) -> None:
    """`--system`, and the flags of the chosen one."""
    from anchornet_ext.systems import find_system, own_system_names

    names = own_system_names()
    group = parser.add_argument_group(f"system {system.name}", system.summary)
    group.add_argument(
        "--system",
        metavar="NAME",
        default=DEFAULT_SYSTEM,
        help=f"what is trained: {', '.join(names)} ({DEFAULT_SYSTEM}); each has options and stages "
        "of its own, which --system NAME --help shows",
    )
    _add_flags(parser, group, system)
    # Where a flag is another system's, say so rather than that nobody knows it.
    foreign: dict[str, list[str]] = {}
    for name in names:
        if name == system.name:
            continue
        scratch = argparse.ArgumentParser(add_help=False)
        _add_flags(scratch, scratch, find_system(name))
        for flag in scratch._option_string_actions:
            if flag not in parser._option_string_actions:
                foreign.setdefault(flag, []).append(name)
    for flag, owners in foreign.items():
        parser.add_argument(
            flag,
            nargs="*",
            dest=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
            action=_OfAnotherSystem,
            const=(system.name, tuple(owners)),
        )


def _add_flags(parser: argparse.ArgumentParser, group: Any, system: System) -> None:
    add_options(group, system.Options)
    for stage in system.stages:
        add_stage_arguments(parser, stage)


class _OfAnotherSystem(argparse.Action):
    """A flag that the chosen system does not have."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        chosen, owners = self.const
        raise argparse.ArgumentError(
            None,
            f"{option_string} is an option of --system {' or '.join(owners)}, not of {chosen}",
        )

"""The flags of `anchornet train` that depend on the system."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from anchornet_ext._options import add_options, flag_of
from anchornet_ext.training.config import add_stage_arguments

from .recipe import Recipe
from .system import System

DEFAULT_SYSTEM = "anchornet"


def chosen_system(parser: argparse.ArgumentParser, words: Sequence[str]) -> System:
    """The system that the words of a command line choose; ends the program if there is none."""
    from anchornet_ext.systems import find_system

    try:
        # Without a value, the whole parser says so.
        return find_system(_said(words, "--system") or DEFAULT_SYSTEM)
    except ValueError as error:
        parser.error(f"argument --system: {error}")


def chosen_recipe(system: System, words: Sequence[str]) -> Recipe | None:
    """The published settings of what the words of a command line choose, if there are some."""
    if system.decisive is None:
        return None
    return system.recipe(_said(words, flag_of(system.decisive)))


def _said(words: Sequence[str], flag: str) -> str | None:
    """The value that `words` give to `flag`, before all flags are known."""
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument(flag, nargs="?", dest="value")
    without_help = [word for word in words if word not in ("-h", "--help")]
    value: str | None = first.parse_known_args(without_help)[0].value
    return value


def add_system_arguments(
    parser: argparse.ArgumentParser, system: System, recipe: Recipe | None = None
) -> None:
    """`--system`, and the flags of the chosen one, with the defaults of `recipe`."""
    from anchornet_ext.systems import find_system, own_system_names

    names = own_system_names()
    summary = system.summary
    if recipe is not None:
        summary += f"; the defaults are those of {recipe.source}"
    group = parser.add_argument_group(f"system {system.name}", summary)
    group.add_argument(
        "--system",
        metavar="NAME",
        default=DEFAULT_SYSTEM,
        help=f"what is trained: {', '.join(names)} ({DEFAULT_SYSTEM}); each has options and stages "
        "of its own, which --system NAME --help shows",
    )
    _add_flags(parser, group, system, recipe)
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


def _add_flags(
    parser: argparse.ArgumentParser, group: Any, system: System, recipe: Recipe | None = None
) -> None:
    add_options(group, (recipe.options if recipe else None) or system.Options)
    published = recipe.stages if recipe else {}
    for stage in system.stages:
        default = published.get(stage.name, stage.default)
        add_stage_arguments(parser, replace(stage, default=default))


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

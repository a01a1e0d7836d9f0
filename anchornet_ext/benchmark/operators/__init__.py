"""Suite `operators`: each over its reference, over the field's usual code and over the floor."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

from ..harness import Case, Options, Row, measure_case
from . import (
    activation_map,
    exit_step,
    gather,
    inverted_residuals,
    mbconv_chain,
    resize,
    scatter,
    selection,
    small_maps,
)
from .case import SUITE
from .setting import CACHES, OURS, PATCH_SIZE, STRIDE

NAME = SUITE
SUMMARY = "every operator over its reference, the usual code and the floor"

#: Operator -> its cases.
CASES: dict[str, Callable[[Options], Iterator[Case]]] = {
    "class_activation_map": activation_map.cases,
    "select_patches": selection.cases,
    "gather_patches": gather.cases,
    "scatter_patches": scatter.cases,
    "resize_images": resize.cases,
    "exit_step": exit_step.cases,
    "mbconv_chain": mbconv_chain.cases,
    "inverted_residuals": inverted_residuals.cases,
    "convolve_maps": small_maps.convolutions,
    "run_map_program": small_maps.programs,
}


def add_arguments(group: argparse._ArgumentGroup) -> None:
    """Declares this suite's own options."""
    group.add_argument(
        "--operators",
        nargs="+",
        choices=CASES,
        metavar="OPERATOR",
        help=f"those only: {', '.join(CASES)} (default: all)",
    )
    group.add_argument(
        "--caches",
        nargs="+",
        choices=CACHES,
        metavar="warm|cold",
        help="warm: data just used; cold: pushed out before each call, for the largest batch "
        "(default: both)",
    )


def check(options: Options) -> None:
    """
    Raises:
        ValueError: a size has no room for four patches.
    """
    smallest = PATCH_SIZE + STRIDE  # 2 x 2 locations
    for size in options.sizes or ():
        if size < smallest:
            raise ValueError(f"--sizes {size}: four patches need {smallest} pixels at least")


def cases(options: Options) -> Iterator[Case]:
    """What `measure` measures."""
    wanted = getattr(options.arguments, "operators", None)
    for name, make in CASES.items():
        if wanted is None or name in wanted:
            yield from make(options)


def measure(options: Options) -> Iterator[Row]:
    """The rows of all operators that were asked for."""
    for case in cases(options):
        yield from measure_case(case, options)


def in_table(row: Row) -> bool:
    """The others are seen in the ratios."""
    return row.name == OURS

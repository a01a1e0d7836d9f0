"""The table of suites: name -> module."""

from __future__ import annotations

import importlib
from typing import cast

from .harness import Suite

#: In the order in which they run. `harness.Suite` says what a module has to have.
SUITES: dict[str, str] = {
    "operators": "anchornet_ext.benchmark.operators",
    "localisation": "anchornet_ext.benchmark.localisation",
    "stream": "anchornet_ext.benchmark.stream",
    "end_to_end": "anchornet_ext.benchmark.end_to_end",
    "breakdown": "anchornet_ext.benchmark.breakdown",
    "memory": "anchornet_ext.benchmark.memory",
    "exits": "anchornet_ext.benchmark.exits",
    "sar": "anchornet_ext.benchmark.sar",
}


def load_suite(name: str) -> Suite:
    """
    Raises:
        ValueError: there is no such suite.
    """
    if name not in SUITES:
        raise ValueError(f"there is no suite {name!r}; there are {', '.join(SUITES)}")
    return cast(Suite, importlib.import_module(SUITES[name]))

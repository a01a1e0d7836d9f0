"""The systems: each file here is one, called as the file is (docs/systems.md says how to add one).

A file has a `SYSTEM`, an instance of a subclass of `common.system.System`. Nothing else has to be
told of it: `anchornet train --system`, `evaluate` and `compare`, the loading of finished runs and
the tests that all systems must pass look into this folder. Other installed packages can add systems
of their own by the entry point group "anchornet_ext.systems".
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from importlib.metadata import entry_points

from .common.system import System

GROUP = "anchornet_ext.systems"

__all__ = ["System", "find_system", "system_names"]


def system_names() -> list[str]:
    """The names of all systems, those of this package first."""
    own = _own()
    return [
        *own,
        *sorted(point.name for point in entry_points(group=GROUP) if point.name not in own),
    ]


def own_system_names() -> list[str]:
    """The names of the systems in this folder."""
    return _own()


def find_system(name: str) -> System:
    """The system of that name.

    Raises:
        ValueError: there is none (with the closest names), or what is there is no system.
    """
    if name in _own():
        found = importlib.import_module(f"{__name__}.{name}").SYSTEM
    else:
        points = [point for point in entry_points(group=GROUP) if point.name == name]
        if not points:
            names = system_names()
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"there is no system {name!r} (there are {', '.join(names)}){hint}")
        found = points[0].load()
    if not isinstance(found, System) or found.name != name:
        raise ValueError(f"what is registered as the system {name!r} is {found!r}")
    return found


def _own() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)

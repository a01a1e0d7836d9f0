"""A tree of modules as it was, to see quickly whether it still is."""

from __future__ import annotations

import functools
import importlib
import struct
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from anchornet_ext import _extension

#: `register_module_forward_hook` and its like put hooks here, which every module calls.
HOOKS_OF_ALL = (_global_forward_hooks, _global_forward_pre_hooks)


def modules_of_types(roots: Sequence[nn.Module], types: Collection[type]) -> list[nn.Module] | None:
    """`roots` and all modules below them, in the order of registration.

    None where one has a hook, or all modules have, or one is of none of `types`: something else may
    stand in a module's place, a quantised or parametrised one say.
    """
    if any(HOOKS_OF_ALL):
        return None
    found: list[nn.Module] = []
    waiting = list(reversed(roots))
    while waiting:
        module = waiting.pop()
        if type(module) not in types or module._forward_hooks or module._forward_pre_hooks:
            return None
        found.append(module)
        waiting += [child for child in reversed(module._modules.values()) if child is not None]
    return found


def parameters_of(modules: Sequence[nn.Module]) -> list[Tensor]:
    """Their own parameters in the order of registration."""
    return [p for module in modules for p in module._parameters.values() if p is not None]


class Structure:
    """What `modules_of_types` and `parameters_of` gave, and whether they still would.

    Asked at every call of a network of some hundred modules, by loops of the native library
    (csrc/python/module_tree.cpp): all of it has left the processor's cache since the call before,
    and the interpreter would wait for each module, dictionary and tensor, one after the other.

    Copied or pickled with the network that keeps it, it becomes None: the copy has other modules.
    """

    def __init__(self, roots: Sequence[nn.Module], modules: Sequence[nn.Module]) -> None:
        self.roots = (*roots,)
        self.modules = [*modules]
        self.parameters = parameters_of(modules)
        self._places = _places_of(self.parameters)
        self._uncounted = [None] * len(self.parameters)
        self._types = [type(module) for module in modules]
        # Torch changes these dictionaries in place; where it puts another one in the stead of one,
        # it has changed that before. TorchScript's modules, which cannot be changed, have others.
        own = [held for m in modules for held in (m._modules, m._parameters)]
        own = [held for held in own if isinstance(held, dict)]
        self._filled = [held for held in own if held]
        self._items = [part for held in self._filled for item in held.items() for part in item]
        hooks = [held for m in modules for held in (m._forward_hooks, m._forward_pre_hooks)]
        self._empty = [*hooks, *HOOKS_OF_ALL, *(held for held in own if not held)]

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()

    def is_as_it_was(self) -> bool:
        """Whether all modules, their types and their parameters are the same, and no hook came."""
        native = _native()
        return bool(
            native.have_types(self.modules, self._types)
            and native.are_empty(self._empty)
            and native.hold(self._filled, self._items)
        )

    def is_on_cpu(self, dtype: torch.dtype) -> bool:
        """Whether all parameters are on the CPU and of this dtype, which can change in place."""
        places = self._places
        return bool(_native().are_as_they_were(self.parameters, self._uncounted, places, dtype))


class Contents:
    """Dictionaries, of tensors or of modules, and whether they hold the same; tensors with the same
    values.

    Needs the native library.
    """

    def __init__(self, dicts: Sequence[dict[str, Any]]) -> None:
        self._dicts = [*dicts]
        self._items = [part for held in dicts for item in held.items() for part in item]
        self._tensors = CountedTensors(part for part in self._items if isinstance(part, Tensor))

    def are_as_they_were(self) -> bool:
        return bool(_native().hold(self._dicts, self._items)) and self._tensors.are_as_they_were()


class CountedTensors:
    """Tensors, and how often each had been written to.

    Loading a state dict writes into the tensors. Of those made in inference mode nobody counts it.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = [*tensors]
        self._versions = [None if t.is_inference() else t._version for t in self._tensors]
        self._places = _places_of(self._tensors)

    def are_as_they_were(self, dtype: torch.dtype | None = None) -> bool:
        """Whether nothing was written to one; with `dtype`, whether all are still of it and on the
        CPU, which can change in place."""
        places = self._places
        return bool(_native().are_as_they_were(self._tensors, self._versions, places, dtype))


def _places_of(tensors: Sequence[Tensor]) -> bytes:
    """Where in the memory tensors are that their Python objects stand for."""
    return struct.pack(f"{len(tensors)}P", *(tensor._cdata for tensor in tensors))


@functools.cache
def _native() -> Any:
    _extension.require()
    return importlib.import_module("anchornet_ext._C")

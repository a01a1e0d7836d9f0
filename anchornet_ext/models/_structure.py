"""A tree of modules as it was, to see quickly whether it still is."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import chain
from operator import attrgetter, is_

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

_IS_CPU, _DTYPE = attrgetter("is_cpu"), attrgetter("dtype")
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

    Going through a network of a hundred modules in Python takes as long as a tenth of an image on
    its way through AnchorNet. To compare with what was found before takes a quarter of that, since
    each loop below runs inside the interpreter's own functions.

    Copied or pickled with the network that keeps it, it becomes None: the copy has other modules.
    """

    def __init__(self, roots: Sequence[nn.Module], modules: Sequence[nn.Module]) -> None:
        self.roots = (*roots,)
        self.modules = modules
        self.parameters = parameters_of(modules)
        self._types = [type(module) for module in modules]
        # Torch changes these dictionaries in place and never puts another one in their stead.
        own = [hooks for m in modules for hooks in (m._forward_hooks, m._forward_pre_hooks)]
        self._hooks = [*own, *HOOKS_OF_ALL]
        self._children = [module._modules for module in modules]
        self._children_then = [dict(children) for children in self._children]
        self._own = [module._parameters.values() for module in modules]
        self._own_then = [*chain.from_iterable(self._own)]

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()

    def is_as_it_was(self) -> bool:
        """Whether all modules, their types and their parameters are the same, and no hook came."""
        return (
            not any(self._hooks)
            and all(map(is_, map(type, self.modules), self._types))
            and self._children == self._children_then
            and sum(map(len, self._own)) == len(self._own_then)
            and all(map(is_, chain.from_iterable(self._own), self._own_then))
        )

    def is_on_cpu(self, dtype: torch.dtype) -> bool:
        """Whether all parameters are on the CPU and of this dtype, which can change in place."""
        return all(map(_IS_CPU, self.parameters)) and {*map(_DTYPE, self.parameters)} == {dtype}

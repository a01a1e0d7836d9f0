"""The modules of some networks, found again quickly as long as nobody changes them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from anchornet_ext.models.anchornet import FoldedAnchorNet
from anchornet_ext.models.tuning import TunedNetwork

FINISHED = TunedNetwork, FoldedAnchorNet


class ModuleTree:
    """`roots` and every module below them, but for those inside of a finished network.

    A tuned network is finished: it stays in evaluation mode, and nothing is put into it or taken
    out. So is a folded AnchorNet, none of whose modules knows of training. To go through the
    hundreds of modules of the others for every image would take as long as a small network does. To
    see that they are still the same takes a tenth of that, because each comparison below runs
    inside the interpreter's own functions.
    """

    def __init__(self, roots: Sequence[nn.Module]) -> None:
        self._roots = list(roots)
        self.modules: list[nn.Module] = []
        waiting = list(reversed(roots))
        known: set[int] = set()
        while waiting:
            module = waiting.pop()
            if id(module) in known:
                continue
            known.add(id(module))
            self.modules.append(module)
            if not isinstance(module, FINISHED):
                waiting += [m for m in reversed(module._modules.values()) if m is not None]
        # Torch changes these dictionaries in place and never puts another one in their stead.
        self._children = [m._modules for m in self.modules if not isinstance(m, FINISHED)]
        self._children_then = [dict(children) for children in self._children]

    def is_of(self, roots: Sequence[nn.Module]) -> bool:
        """Whether these are still the modules of `roots`."""
        return self._roots == list(roots) and self._children == self._children_then

"""Patch-based dynamic image classification: a glance, then a few localised patches.

`ops`, `reference` and `receptive_field` are there at once. The models and the classifier are
imported on first use, because they bring torchvision, which the operators do not need.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import ops, receptive_field, reference
from ._version import __version__

if TYPE_CHECKING:
    from .data.transforms import Preprocessing
    from .inference import TwoStageClassifier
    from .models import (
        AnchorNet,
        FoldedAnchorNet,
        build_backbone,
        count_macs,
        load_released_anchornet,
        load_released_classifier,
    )
    from .models.localise import Localisation, localise
    from .policy.exit_policy import ExitPolicy

# public name -> the module that it is imported from on first use
_LAZY = {
    "AnchorNet": ".models",
    "ExitPolicy": ".policy.exit_policy",
    "FoldedAnchorNet": ".models",
    "Localisation": ".models",
    "Preprocessing": ".data.transforms",
    "TwoStageClassifier": ".inference",
    "build_backbone": ".models",
    "count_macs": ".models",
    "load_released_anchornet": ".models",
    "load_released_classifier": ".models",
    "localise": ".models",
}

__all__ = [
    "AnchorNet",
    "ExitPolicy",
    "FoldedAnchorNet",
    "Localisation",
    "Preprocessing",
    "TwoStageClassifier",
    "__version__",
    "build_backbone",
    "count_macs",
    "load_released_anchornet",
    "load_released_classifier",
    "localise",
    "ops",
    "receptive_field",
    "reference",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name], __name__), name)
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})

"""Large memory that one stream after the other uses.

Memory that is new to a process costs a fault for each of its pages, which on a virtual machine can
take ten times as long as writing it. For a stream of some hundred images that would be a good part
of its time.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .two_stage import TwoStageClassifier

#: Of a classifier at most so much is kept between its streams; what is larger is given back.
MOST_BYTES = 128 << 20

_KEPT: WeakKeyDictionary[TwoStageClassifier, list[Tensor]] = WeakKeyDictionary()
_LOCK = threading.Lock()


@torch.inference_mode(False)
def borrow(
    classifier: TwoStageClassifier,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    layout: torch.memory_format,
) -> Tensor:
    """A tensor on the CPU with any content, which nobody else has until `give_back`."""
    with _LOCK:
        kept = _KEPT.get(classifier, [])
        for number, tensor in enumerate(kept):
            same = tensor.dtype == dtype and tensor.shape == shape
            if same and tensor.is_contiguous(memory_format=layout):
                return kept.pop(number)
    return torch.empty(shape, dtype=dtype, memory_format=layout)


def give_back(classifier: TwoStageClassifier, tensor: Tensor) -> None:
    """Keeps what was borrowed for the next stream, in the place of others if it gets too much."""
    if tensor.nbytes > MOST_BYTES:
        return
    with _LOCK:
        kept = [tensor, *_KEPT.get(classifier, [])]
        while sum(one.nbytes for one in kept) > MOST_BYTES:
            kept.pop()
        _KEPT[classifier] = kept

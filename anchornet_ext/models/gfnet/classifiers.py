"""GFNet's classifier f_C: what all inputs of an image so far say together."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RecurrentClassifier(nn.Module):
    """A GRU over the inputs' feature vectors, and a linear layer (section 3.2).

    Args:
        features: F.
        num_classes: n.
        hidden: units of the GRU.
    """

    def __init__(self, features: int, num_classes: int, hidden: int = 1024) -> None:
        super().__init__()
        self.rnn = nn.GRU(features, hidden)
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, vector: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
        """(logits (B, n), what has been seen (B, hidden)) after one more input.

        Args:
            vector: (B, F) of the new input.
            seen: what the last call returned; None for the first input.
        """
        _, hidden = self.rnn(vector[None], None if seen is None else seen[None])
        return self.fc(hidden[0]), hidden[0]


class CascadedClassifier(nn.Module):
    """One linear layer per step over the concatenated feature vectors (appendix A.1).

    The first input is classified by the layer of the glance's own network, which is not in here.

    Args:
        features: F.
        num_classes: n.
        num_exits: T.
    """

    def __init__(self, features: int, num_classes: int, num_exits: int) -> None:
        super().__init__()
        self._features = features
        for step in range(2, num_exits + 1):  # the names of the released files
            self.add_module(f"fc_{step}", nn.Linear(step * features, num_classes))

    def forward(self, vector: Tensor, seen: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """As `RecurrentClassifier`; no logits for the first input, and `seen` grows."""
        if seen is None:
            return None, vector
        together = torch.cat((seen, vector), dim=1)  # (B, t F)
        layer = self.get_submodule(f"fc_{together.shape[1] // self._features}")
        return layer(together), together

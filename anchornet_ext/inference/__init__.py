"""Two-stage classification with early exit: the model, Algorithm 1, and `anchornet predict`."""

from .two_stage import TwoStageClassifier

__all__ = ["TwoStageClassifier"]

"""The figures of a report (like the paper's Figures 5 to 7), for one system or several together.

Each function returns a matplotlib `Figure` of its own; nothing global is touched.
"""

from .accuracy_over_cost import draw_accuracy_over_cost, lettered
from .anytime import draw_anytime
from .expected_inputs import draw_expected_inputs, sample_points
from .reliability import draw_reliability
from .speedups import draw_speedups

__all__ = [
    "draw_accuracy_over_cost",
    "draw_anytime",
    "draw_expected_inputs",
    "draw_reliability",
    "draw_speedups",
    "lettered",
    "sample_points",
]

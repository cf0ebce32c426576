"""How robust a network or an ensemble is, and how different networks are."""

from isopath.robustness.accuracy import Accuracy
from isopath.robustness.comparison import Comparison, compare
from isopath.robustness.protocol import robustness
from isopath.robustness.result import Robustness

__all__ = ["Accuracy", "Comparison", "Robustness", "compare", "robustness"]

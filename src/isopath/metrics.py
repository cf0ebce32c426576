"""Representations of the metric: `Exact`, `Gram`, `Kronecker`, `Identity` and their sums `Combined`."""

from isopath.geometry.combined import Combined
from isopath.geometry.exact import Exact
from isopath.geometry.gram import Gram
from isopath.geometry.identity import Identity
from isopath.geometry.kronecker import Kronecker
from isopath.geometry.metric import Metric

__all__ = ["Combined", "Exact", "Gram", "Identity", "Kronecker", "Metric"]

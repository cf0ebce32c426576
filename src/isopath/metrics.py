"""Representations of the metric, with the Protocol `Metric`; files and sums of those that need no rows."""

from isopath.geometry.combined import Combined
from isopath.geometry.diagonal import Diagonal
from isopath.geometry.exact import Exact
from isopath.geometry.gram import Gram
from isopath.geometry.identity import Identity
from isopath.geometry.kronecker import Kronecker
from isopath.geometry.lowrank import LowRank
from isopath.geometry.metric import Metric
from isopath.geometry.preconditioned import Preconditioned
from isopath.geometry.stored import load, merged, save

__all__ = [
    "Combined", "Diagonal", "Exact", "Gram", "Identity", "Kronecker", "LowRank", "Metric", "Preconditioned",
    "load", "merged", "save",
]  # fmt: skip

"""Functionally invariant paths: where to go, how far, and back."""

from isopath.trace.compensation import Compensation
from isopath.trace.controller import Backtracking
from isopath.trace.corrector import GaussNewton
from isopath.trace.direction import NaturalGradient, NullSpace, Penalised
from isopath.trace.lagrangian import Lagrangian, Multiplier
from isopath.trace.recovery import Recovery
from isopath.trace.sparsifier import Sparsifier
from isopath.trace.state import State
from isopath.trace.tracer import Tracer

__all__ = [
    "Backtracking", "Compensation", "GaussNewton", "Lagrangian", "Multiplier", "NaturalGradient", "NullSpace",
    "Penalised", "Recovery", "Sparsifier", "State", "Tracer",
]  # fmt: skip

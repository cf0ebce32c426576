"""For your own training loop: an optimiser whose steps respect what is kept."""

from isopath.optim.invariant import Invariant

__all__ = ["Invariant"]

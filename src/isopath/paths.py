"""Paths: `Segment`, `PolyChain`, `Trajectory`."""

from isopath.path import Path, PolyChain, Segment
from isopath.trace.trajectory import Trajectory

__all__ = ["Path", "PolyChain", "Segment", "Trajectory"]

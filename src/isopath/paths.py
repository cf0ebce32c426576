"""Paths: `Segment`, `PolyChain`, `Bezier`, `Curve`, `Trajectory`."""

from isopath.connect.curve import Curve
from isopath.path import Bezier, Path, PolyChain, Segment
from isopath.trace.trajectory import Trajectory

__all__ = ["Bezier", "Curve", "Path", "PolyChain", "Segment", "Trajectory"]

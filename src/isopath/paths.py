"""Paths, and what is done along curves: `geodesic`, `alternating`, `plane`, `functional_length`, `repaired` ..."""

from isopath.connect import (
    Alternation,
    Curve,
    Plane,
    Profile,
    alternating,
    consensus,
    functional_length,
    geodesic,
    plane,
    reestimated,
    repaired,
    rescaled,
)
from isopath.path import Bezier, Path, PolyChain, Segment
from isopath.trace.trajectory import Trajectory

__all__ = [
    "Alternation",
    "Bezier",
    "Curve",
    "Path",
    "Plane",
    "PolyChain",
    "Profile",
    "Segment",
    "Trajectory",
    "alternating",
    "consensus",
    "functional_length",
    "geodesic",
    "plane",
    "reestimated",
    "repaired",
    "rescaled",
]

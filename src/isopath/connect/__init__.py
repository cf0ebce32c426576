"""Curves of low loss between networks."""

from isopath.connect.average import average
from isopath.connect.consensus import consensus
from isopath.connect.curve import Curve, connect
from isopath.connect.geodesic import functional_length, geodesic
from isopath.connect.plane import Plane, plane
from isopath.connect.profile import Profile, along, barrier
from isopath.connect.proximal import Alternation, alternating
from isopath.connect.rescaled import rescaled
from isopath.connect.statistics import reestimated, repaired

__all__ = [
    "Alternation",
    "Curve",
    "Plane",
    "Profile",
    "along",
    "alternating",
    "average",
    "barrier",
    "connect",
    "consensus",
    "functional_length",
    "geodesic",
    "plane",
    "reestimated",
    "repaired",
    "rescaled",
]

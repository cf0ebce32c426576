"""Curves of low loss between networks."""

from isopath.connect.average import average
from isopath.connect.curve import Curve, connect
from isopath.connect.profile import Profile, along, barrier
from isopath.connect.statistics import reestimated, repaired

__all__ = ["Curve", "Profile", "along", "average", "barrier", "connect", "reestimated", "repaired"]

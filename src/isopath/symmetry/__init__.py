"""Which weights may be permuted together without any change of the function."""

from isopath.symmetry.finder import symmetries
from isopath.symmetry.group import Group, Scaling, Symmetries
from isopath.symmetry.matching import align
from isopath.symmetry.permutation import Permutation
from isopath.symmetry.rescaling import balanced, nearest

__all__ = ["Group", "Permutation", "Scaling", "Symmetries", "align", "balanced", "nearest", "symmetries"]

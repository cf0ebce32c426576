"""Which weights may be permuted together without any change of the function."""

from isopath.symmetry.finder import symmetries
from isopath.symmetry.group import Group, Symmetries
from isopath.symmetry.matching import align
from isopath.symmetry.permutation import Permutation

__all__ = ["Group", "Permutation", "Symmetries", "align", "symmetries"]

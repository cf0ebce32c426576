"""Which weights may be permuted together without any change of the function."""

from isopath.symmetry.compaction import compact
from isopath.symmetry.finder import symmetries
from isopath.symmetry.group import Group, Scaling, Symmetries
from isopath.symmetry.matching import align
from isopath.symmetry.permutation import Permutation
from isopath.symmetry.rescaling import balanced, nearest
from isopath.symmetry.units import Units

__all__ = [
    "Group", "Permutation", "Scaling", "Symmetries", "Units", "align", "balanced", "compact", "nearest", "symmetries",
]  # fmt: skip

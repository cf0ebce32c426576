"""What is wanted of a path: one file each."""

from isopath.objectives.diversity import Diversity
from isopath.objectives.objective import Function, Objective, Sum, as_objective
from isopath.objectives.robust import Robust
from isopath.objectives.sparsity import Sparsity, prunable, sparsity
from isopath.objectives.task import Task
from isopath.objectives.toward import Toward

__all__ = [
    "Diversity",
    "Function",
    "Objective",
    "Robust",
    "Sparsity",
    "Sum",
    "Task",
    "Toward",
    "as_objective",
    "prunable",
    "sparsity",
]

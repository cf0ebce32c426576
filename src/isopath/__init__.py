"""isopath: change a trained network without breaking what it already does.

>>> import isopath as ip
>>> path = ip.trace(model, keep=ip.Reference(inputs), objective=ip.Task(x, y), tolerance=0.01)  # doctest: +SKIP
"""

from isopath import check, metrics, objectives, paths
from isopath.evaluate import evaluate
from isopath.geometry.reference import Reference
from isopath.objectives import Diversity, Sparsity, Task, Toward
from isopath.trace.direction import NaturalGradient, NullSpace, Penalised
from isopath.trace.trajectory import Trajectory
from isopath.verbs import steps, trace
from isopath.version import __version__

__all__ = [
    "Diversity",
    "NaturalGradient",
    "NullSpace",
    "Penalised",
    "Reference",
    "Sparsity",
    "Task",
    "Toward",
    "Trajectory",
    "__version__",
    "check",
    "evaluate",
    "metrics",
    "objectives",
    "paths",
    "steps",
    "trace",
]

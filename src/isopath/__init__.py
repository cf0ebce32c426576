"""isopath: change a trained network without breaking what it already does.

>>> import isopath as ip
>>> path = ip.trace(model, keep=ip.Reference(inputs), objective=ip.Task(x, y), tolerance=0.01)  # doctest: +SKIP
"""

from isopath import attacks, check, metrics, objectives, optim, paths, symmetry
from isopath.attacks import attack
from isopath.connect import along, average, barrier, connect
from isopath.ensemble import Ensemble
from isopath.evaluate import evaluate, footprint
from isopath.generate import Generator, distill, explore, generate
from isopath.geometry.memory import Memory
from isopath.geometry.reference import Reference
from isopath.objectives import Diversity, Robust, Sparsity, Task, Toward
from isopath.pack import Packing, pack
from isopath.robustness import compare, robustness
from isopath.storage import load_weights, save_weights
from isopath.symmetry import Permutation, align, compact, symmetries
from isopath.trace.direction import NaturalGradient, NullSpace, Penalised
from isopath.trace.trajectory import Trajectory
from isopath.verbs import steps, trace
from isopath.version import __version__

__all__ = [
    "Diversity",
    "Ensemble",
    "Generator",
    "Memory",
    "NaturalGradient",
    "NullSpace",
    "Packing",
    "Penalised",
    "Permutation",
    "Reference",
    "Robust",
    "Sparsity",
    "Task",
    "Toward",
    "Trajectory",
    "__version__",
    "align",
    "along",
    "attack",
    "attacks",
    "average",
    "barrier",
    "check",
    "compact",
    "compare",
    "connect",
    "distill",
    "evaluate",
    "explore",
    "footprint",
    "generate",
    "load_weights",
    "metrics",
    "objectives",
    "optim",
    "pack",
    "paths",
    "robustness",
    "save_weights",
    "steps",
    "symmetries",
    "symmetry",
    "trace",
]

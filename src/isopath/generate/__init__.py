"""A manifold of good and different networks, and one network distilled from many."""

from isopath.generate.distillation import distill
from isopath.generate.entropy import entropy, intrinsic_dimension, participation
from isopath.generate.generation import generate
from isopath.generate.generator import Generator, LatentPath
from isopath.generate.manifold import Manifold, explore

__all__ = [
    "Generator",
    "LatentPath",
    "Manifold",
    "distill",
    "entropy",
    "explore",
    "generate",
    "intrinsic_dimension",
    "participation",
]

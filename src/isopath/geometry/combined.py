"""Sums of metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isopath.geometry.metric import Metric
from isopath.geometry.solvers import conjugate_gradients, lanczos


@dataclass(frozen=True)
class Combined:
    """Σ G_i, solved by conjugate gradients preconditioned by its first term.

    References that are added in a trace need no such sum: their rows share one pair of Kronecker factors per layer.

    Args:
        terms: metrics of one dimension.
        iterations: the most conjugate-gradient steps.
        tolerance: relative residual at which they stop.

    Raises:
        ValueError: no terms, or terms of different dimensions.
    """

    terms: Sequence[Metric]
    iterations: int = 50
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        dimensions = {term.dimension for term in self.terms}
        if len(dimensions) != 1:
            raise ValueError(f"a sum needs metrics of one dimension, got {sorted(dimensions)}")

    @property
    def dimension(self) -> int:
        """P."""
        return self.terms[0].dimension

    def mv(self, v: Tensor) -> Tensor:
        """Σ G_i v."""
        return torch.stack([term.mv(v) for term in self.terms]).sum(0)

    def solve(self, b: Tensor, damping: float) -> Tensor:
        """(Σ G_i + damping I)⁻¹ b."""
        return conjugate_gradients(
            lambda v: self.mv(v) + damping * v,
            b,
            self.iterations,
            self.tolerance,
            lambda r: self.terms[0].solve(r, damping),
        )

    def norm(self, v: Tensor) -> Tensor:
        """√(Σ vᵀG_i v)."""
        return torch.stack([term.norm(v).square() for term in self.terms]).sum().sqrt()

    def spectrum(self, k: int) -> Tensor:
        """The largest `k` eigenvalues, by Lanczos."""
        like = self.terms[0].spectrum(1)
        return lanczos(self.mv, self.dimension, k, like)

    def trace(self) -> float:
        """The sum of the traces."""
        return sum(term.trace() for term in self.terms)

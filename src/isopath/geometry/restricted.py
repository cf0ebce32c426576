"""A metric on the coordinates that may still move."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from isopath.geometry.metric import Metric
from isopath.geometry.solvers import conjugate_gradients, lanczos


@dataclass(frozen=True, eq=False)
class Restricted:
    """SGS with S the projection on a set of coordinates, solved by conjugate gradients inside that set.

    Masking the solution of the whole system instead would not do: what the metric holds back in one coordinate leans on
    others, and without them the tangent is no longer invariant.

    Args:
        metric: the metric on all coordinates; its own solve is the preconditioner.
        support: the coordinates that may move, `(P,)` booleans.
        iterations: the most conjugate-gradient steps.
        tolerance: relative residual at which they stop.
    """

    metric: Metric
    support: Tensor
    iterations: int = 10
    tolerance: float = 1e-2

    @property
    def dimension(self) -> int:
        """P."""
        return self.metric.dimension

    def mv(self, v: Tensor) -> Tensor:
        """SGS v."""
        return self.metric.mv(v * self.support).mul_(self.support)

    def solve(self, b: Tensor, damping: float) -> Tensor:
        """(SGS + damping I)⁻¹ S b, zero off the support."""
        return conjugate_gradients(
            lambda v: self.metric.mv(v).mul_(self.support).add_(v, alpha=damping),
            b * self.support,
            self.iterations,
            self.tolerance,
            lambda r: self.metric.solve(r, damping).mul_(self.support),
        )

    def norm(self, v: Tensor) -> Tensor:
        """√(vᵀSGSv)."""
        return self.metric.norm(v * self.support)

    def spectrum(self, k: int) -> Tensor:
        """The largest `k` eigenvalues, by Lanczos."""
        return lanczos(self.mv, self.dimension, k, self.metric.spectrum(1))

    def trace(self) -> float:
        """The trace of the metric on all coordinates, an upper bound."""
        return self.metric.trace()

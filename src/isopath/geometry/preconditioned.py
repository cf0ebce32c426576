"""The exact metric, solved by a few steps from a Kronecker factor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from isopath.geometry.batch import Batch
from isopath.geometry.exact import Exact
from isopath.geometry.kronecker import Kronecker
from isopath.geometry.metric import Metric
from isopath.geometry.solvers import conjugate_gradients
from isopath.network import Network


@dataclass(frozen=True)
class Preconditioned:
    """Products with one metric, solved by a few steps of conjugate gradients preconditioned by another.

    A factor that was built some steps ago will do: what is stale in it costs iterations, not correctness.

    Args:
        metric: that is solved.
        factor: whose own solve is near.
        iterations: steps at most.
        tolerance: relative residual at which they stop.

    Raises:
        ValueError: their dimensions differ.
    """

    metric: Metric
    factor: Metric
    iterations: int = 5
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        if self.metric.dimension != self.factor.dimension:
            raise ValueError(
                f"the factor is of dimension {self.factor.dimension}, the metric of {self.metric.dimension}"
            )

    @classmethod
    def of(
        cls, network: Network, theta: Tensor, batches: Sequence[Batch], factor: Metric | None = None,
        iterations: int = 5, tolerance: float = 1e-6, shrinkage: float = 0.0,
    ) -> Preconditioned:  # fmt: skip
        """The exact metric with a Kronecker factor, built here if none is given."""
        factor = Kronecker.of(network, theta, batches, shrinkage=shrinkage) if factor is None else factor
        return cls(Exact(network, theta, batches), factor, iterations, tolerance)

    @property
    def dimension(self) -> int:
        """P."""
        return self.metric.dimension

    def mv(self, v: Tensor) -> Tensor:
        """G v."""
        return self.metric.mv(v)

    def solve(self, b: Tensor, damping: float) -> Tensor:
        """(G + damping I)⁻¹ b, as near as the iterations come."""

        def damped(v: Tensor) -> Tensor:
            return self.metric.mv(v).add_(v, alpha=damping)

        return conjugate_gradients(
            damped, b, self.iterations, self.tolerance, lambda r: self.factor.solve(r, damping)
        )

    def norm(self, v: Tensor) -> Tensor:
        """√(vᵀGv)."""
        return self.metric.norm(v)

    def spectrum(self, k: int) -> Tensor:
        """The largest eigenvalues."""
        return self.metric.spectrum(k)

    def trace(self) -> float:
        """The factor's, which costs no product."""
        return self.factor.trace()

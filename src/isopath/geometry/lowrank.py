"""The top of the metric's spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isopath.geometry.batch import Batch
from isopath.geometry.exact import Exact
from isopath.geometry.solvers import ritz
from isopath.network import Network
from isopath.space import Space


@dataclass(frozen=True)
class LowRank:
    """G ≈ U diag(s) Uᵀ with its leading eigenpairs; off them the metric is zero.

    Args:
        space: the parameters.
        values: `(k,)`, descending.
        vectors: orthonormal columns `(P, k)`.
    """

    space: Space
    values: Tensor
    vectors: Tensor

    @classmethod
    def of(
        cls, network: Network, theta: Tensor, batches: Sequence[Batch], rank: int = 20, extra: int = 16, seed: int = 0
    ) -> LowRank:
        """By Lanczos iteration on exact products: `rank + extra` of them, as many vectors of P while it is built.

        Args:
            network: the network.
            theta: the point, `(P,)`.
            batches: weighted reference rows, gone over for every product.
            rank: how many eigenpairs.
            extra: more steps for more accuracy of the last ones.
            seed: of the start.
        """
        if rank < 1:
            raise ValueError(f"rank must be >= 1, got {rank}")
        metric = Exact(network, theta, batches)
        values, vectors = ritz(metric.mv, len(theta), rank, theta, seed, extra)
        keep = values > 1e-10 * values[:1].clamp_min(torch.finfo(theta.dtype).tiny)
        return cls(network.space, values[keep], vectors[:, keep])

    @property
    def dimension(self) -> int:
        """P."""
        return len(self.vectors)

    def mv(self, v: Tensor) -> Tensor:
        """G v."""
        return self.vectors @ (self.values * (self.vectors.mT @ v))

    def solve(self, b: Tensor, damping: float) -> Tensor:
        """(G + damping I)⁻¹ b, exactly."""
        if not damping > 0:
            raise ValueError(f"the low-rank metric needs damping > 0 (G is singular), got {damping}")
        return (b - self.vectors @ (self.values / (self.values + damping) * (self.vectors.mT @ b))) / damping

    def norm(self, v: Tensor) -> Tensor:
        """√(vᵀGv)."""
        return (self.values * (self.vectors.mT @ v).square()).sum().sqrt()

    def spectrum(self, k: int) -> Tensor:
        """The largest eigenvalues, zeros beyond the rank."""
        k = min(k, self.dimension)
        return torch.nn.functional.pad(self.values[:k], (0, max(0, k - len(self.values))))

    def trace(self) -> float:
        """The sum of the eigenvalues."""
        return float(self.values.sum())

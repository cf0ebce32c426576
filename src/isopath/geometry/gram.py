"""The metric solved in sample space: exact, for a few hundred outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from isopath.geometry.batch import Batch
from isopath.geometry.exact import Exact
from isopath.network import Network

LARGEST = 4096  # rows of the Gram matrix; its eigenvectors are 8 * 4096² bytes = 128 MiB


class Gram:
    """G = AᵀA with A = √w R J, `(S, P)`, solved through the Gram matrix K = AAᵀ, `(S, S)`.

    By Woodbury, (AᵀA + μI)⁻¹ = (I - Aᵀ(K + μI)⁻¹A)/μ. A is never stored: a block of its rows lives while its columns
    of K are made, `block` backward passes at a time; a solve costs one product each with A and Aᵀ.

    Args:
        network: the network.
        theta: the point, `(P,)`.
        batches: weighted reference rows.
        block: rows of A held at once.
        rtol: eigenvalues of K below `rtol` times the largest count as zero in `project` and undamped solves.

    Raises:
        ValueError: S, the number of output components over all rows, exceeds 4096.
    """

    def __init__(
        self, network: Network, theta: Tensor, batches: Sequence[Batch], block: int = 32, rtol: float = 1e-12
    ) -> None:
        self._exact = Exact(network, theta, batches)
        # A row of R per output component, its row weight inside: (N, K, C) each
        self._roots = [
            batch.weight.sqrt()[..., None, None] * batch.divergence.root(y)
            for batch, y in zip(batches, self._exact.outputs())
        ]
        size = sum(root.shape[:-1].numel() for root in self._roots)
        if size > LARGEST:
            raise ValueError(
                f"the Gram matrix would be {size} x {size} ({size} output components), at most {LARGEST} are allowed; "
                "give fewer reference rows or use kind='exact' or 'kronecker'"
            )
        gram = torch.cat([self._columns(i, min(i + block, size)) for i in range(0, size, block)], 1).double()
        values, self._vectors = torch.linalg.eigh(0.5 * (gram + gram.mT))
        self._values = values.clamp_min(0)
        self._kept = self._values > rtol * self._values[-1].clamp_min(torch.finfo(torch.float64).tiny)

    @property
    def dimension(self) -> int:
        """P."""
        return self._exact.dimension

    @property
    def rank(self) -> int:
        """The number of eigenvalues that count."""
        return int(self._kept.sum())

    def push(self, v: Tensor) -> Tensor:
        """A v, `(S,)`."""
        pushed = self._exact.push(v)
        return torch.cat([torch.einsum("...kc,...c->...k", r, u).reshape(-1) for r, u in zip(self._roots, pushed)])

    def pull(self, s: Tensor) -> Tensor:
        """Aᵀ s, `(P,)`."""
        pieces = s.to(self._exact.theta).split([root.shape[:-1].numel() for root in self._roots])
        cotangents = [
            torch.einsum("...kc,...k->...c", root, piece.reshape(root.shape[:-1]))
            for root, piece in zip(self._roots, pieces)
        ]
        return self._exact.pull(cotangents)

    def mv(self, v: Tensor) -> Tensor:
        """G v."""
        return self._exact.mv(v)

    def solve(self, b: Tensor, damping: float) -> Tensor:
        """(G + damping I)⁻¹ b; with `damping=0` the pseudo-inverse G⁺b."""
        if damping < 0:
            raise ValueError(f"damping must be >= 0, got {damping}")
        pushed = self.push(b)
        if damping == 0:
            return self.pull(self._spectral(pushed, lambda values: values**-2))
        return (b - self.pull(self._spectral(pushed, lambda values: 1 / (values + damping)))) / damping

    def project(self, v: Tensor) -> Tensor:
        """The component of `v` in the null space of G: v - A⁺A v."""
        return v - self.pull(self._spectral(self.push(v), lambda values: 1 / values))

    def norm(self, v: Tensor) -> Tensor:
        """√(vᵀGv)."""
        return self.push(v).norm()

    def spectrum(self, k: int) -> Tensor:
        """The largest eigenvalues, descending, at most `min(k, S)`."""
        return self._values.flip(0)[:k].to(self._exact.theta)

    def trace(self) -> float:
        """The sum of the eigenvalues."""
        return float(self._values.sum())

    def _spectral(self, s: Tensor, function: Any) -> Tensor:
        """function(K) s on the eigenvalues that count."""
        vectors = self._vectors[:, self._kept]
        return vectors @ (function(self._values[self._kept]) * (vectors.mT @ s.double()))

    def _columns(self, start: int, stop: int) -> Tensor:
        """Columns of K from `start` to `stop`."""
        size = sum(root.shape[:-1].numel() for root in self._roots)
        unit = torch.eye(size, dtype=self._exact.theta.dtype, device=self._exact.theta.device)[start:stop]
        return torch.stack([self.push(self.pull(row)) for row in unit], 1)

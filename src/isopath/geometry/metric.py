"""The metric pulled back to weight space, as every representation of it presents itself."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Metric(Protocol):
    """G, symmetric and positive semi-definite on tangents `v` of shape `(P,)`, bound to one point."""

    @property
    def dimension(self) -> int:
        """P."""
        ...

    def mv(self, v: Tensor) -> Tensor:
        """G v, `(P,)`."""
        ...

    def solve(self, b: Tensor, damping: float) -> Tensor:
        """(G + damping I)⁻¹ b, `(P,)`."""
        ...

    def norm(self, v: Tensor) -> Tensor:
        """√(vᵀGv), a scalar: to first order, √(2D) after a move by `v`."""
        ...

    def spectrum(self, k: int) -> Tensor:
        """The largest `min(k, P)` eigenvalues, descending."""
        ...

    def trace(self) -> float:
        """The sum of the eigenvalues (an estimate where `k` products are all there is)."""
        ...

"""The linear algebra of one layer's block of a Kronecker-factored metric."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Window = tuple[int, int, int, int]  # first output, first input, and of the whole layer: outputs, inputs with the bias


@dataclass(frozen=True)
class Block:
    """B ⊗ A on one layer's weight `(groups, o, i)`, its bias an extra input, in the eigenbases of both factors.

    A = E[aaᵀ] over the layer's inputs, B = E[ggᵀ] over gradients at its outputs. Only directions with curvature are
    stored, so a wide layer costs the number of reference rows times its width, not its width squared.
    """

    weight: slice | None
    bias: slice | None
    shape: tuple[int, int, int]  # groups, outputs, inputs (bias included)
    input_values: Tensor
    input_vectors: Tensor  # (groups, i, ra)
    output_values: Tensor
    output_vectors: Tensor  # (groups, o, rb)
    shrinkage: tuple[Tensor | None, Tensor] | None = None  # of inputs (or none) and outputs, (groups, 1, 1)
    corrected: Tensor | None = None  # (groups, rb, ra) eigenvalues in place of the products b a (EKFAC)
    window: Window | None = None  # of a factor that is split

    @property
    def eigenvalues(self) -> Tensor:
        """Eigenvalues along stored directions, shrinkage included, flat."""
        return self._grid().reshape(-1)

    def _grid(self) -> Tensor:
        """(b + low_b)(a + low_a), with b a corrected where that is known, `(groups, rb, ra)`."""
        a, b = self.input_values.unsqueeze(-2), self.output_values.unsqueeze(-1)
        if self.shrinkage is None:
            return b * a if self.corrected is None else self.corrected
        low_a, low_b = self.shrinkage
        if low_a is None:
            return (b + low_b) * a if self.corrected is None else self.corrected + low_b * a
        if self.corrected is None:
            return (b + low_b) * (a + low_a)
        return self.corrected + low_b * a + low_a * b + low_a * low_b

    @property
    def trace(self) -> Tensor:
        """tr(B + bI) tr(A + aI), summed over the groups; with the corrected eigenvalues where there are any."""
        _, outputs, inputs = self.shape
        a, b = self.input_values.sum(-1), self.output_values.sum(-1)
        total = (a * b).sum()
        if self.shrinkage is not None:
            low_a, low_b = (0.0 if low is None else low.flatten() for low in self.shrinkage)
            total = ((b + outputs * low_b) * (a + inputs * low_a)).sum()
        return total if self.corrected is None else total + self.corrected.sum() - (a * b).sum()

    def _corners(self, function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """function((B + bI) ⊗ (A + aI)) on the grid {stored, rest} x {stored, rest}, each less what it rests on.

        Off the stored directions a factor's eigenvalue is its shrinkage alone, so nothing of size o² or i² appears.
        Where the inputs' factor is not shrunk nothing is left along the outputs alone: `None` saves two products.
        """
        assert self.shrinkage is not None
        low_a, low_b = self.shrinkage
        if low_a is None:
            rest = function(torch.zeros_like(low_b))
            along_a = function(self.input_values.unsqueeze(-2) * low_b) - rest
            return rest, along_a, None, function(self._grid()) - rest - along_a
        a, b = self.input_values.unsqueeze(-2) + low_a, self.output_values.unsqueeze(-1) + low_b
        rest = function(low_a * low_b)
        along_a, along_b = function(a * low_b) - rest, function(b * low_a) - rest
        return rest, along_a, along_b, function(self._grid()) - rest - along_a - along_b

    def _parts(self, v: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias as views `(groups, o, ·)` of `v`, each with its rows of the input eigenvectors."""
        (groups, outputs, inputs), window = self.shape, self.window
        first, start, outputs_all, inputs_all = (0, 0, outputs, inputs) if window is None else window
        width = inputs_all - (self.bias is not None)
        rows, columns = slice(first, first + outputs), slice(start, min(start + inputs, width))
        parts, count = [], columns.stop - columns.start
        if self.weight is not None and count > 0:
            whole = v[self.weight].view(groups, outputs_all, width)
            parts.append((whole[:, rows, columns], self.input_vectors[:, :count]))
        if self.bias is not None and start + inputs == inputs_all:
            parts.append((v[self.bias].view(groups, outputs_all, 1)[:, rows], self.input_vectors[:, -1:]))
        return parts

    def apply(self, v: Tensor, out: Tensor, function: Callable[[Tensor], Tensor]) -> None:
        """Writes function((B + bI) ⊗ (A + aI)) of this layer's part of `v` into `out`, `(P,)`, without a copy of it."""
        parts, vectors = self._parts(v), self.output_vectors
        right = sum(part @ columns for part, columns in parts)
        if self.shrinkage is None:  # nothing but the stored directions differs from what an eigenvalue of zero gives
            rest = function(torch.zeros((), dtype=v.dtype, device=v.device))
            mixed = vectors @ ((function(self._grid()) - rest) * (vectors.mT @ right))
            for (part, columns), (written, _) in zip(parts, self._parts(out)):
                torch.mul(part, rest, out=written)
                written.baddbmm_(mixed, columns.mT)
            return
        rest, along_a, along_b, along_both = self._corners(function)
        mixed = vectors @ (along_both * (vectors.mT @ right)) + along_a * right
        for (part, columns), (written, _) in zip(parts, self._parts(out)):
            torch.mul(part, rest, out=written)
            if along_b is not None:
                written.baddbmm_(vectors, along_b * (vectors.mT @ part))
            written.baddbmm_(mixed, columns.mT)

    def quadratic(self, v: Tensor) -> Tensor:
        """vᵀ((B + bI) ⊗ (A + aI))v on this layer's part, a scalar."""
        parts, vectors = self._parts(v), self.output_vectors
        right = sum(part @ columns for part, columns in parts)
        if self.shrinkage is None:
            return (self._grid() * (vectors.mT @ right).square()).sum()
        rest, along_a, along_b, along_both = self._corners(lambda values: values)
        total = (
            (along_a * right.square()).sum()  # type: ignore[union-attr]
            + (along_both * (vectors.mT @ right).square()).sum()
        )
        for part, _ in parts:
            total = total + (rest.flatten() * torch.linalg.vector_norm(part, dim=(1, 2)).square()).sum()
            if along_b is not None:
                total = total + (along_b * (vectors.mT @ part).square()).sum()
        return total


@dataclass(frozen=True)
class Lookup:
    """A ⊗ B on an embedding's weight `(V, d)`: A the diagonal of how often each row is read, B = E[ggᵀ].

    Attributes:
        weight: its place.
        shape: V and d.
        counts: expected reads of each row by one example, `(V,)`.
        output_values, output_vectors: eigenvalues `(r,)` and eigenvectors `(d, r)` of B.
    """

    weight: slice
    shape: tuple[int, int]
    counts: Tensor
    output_values: Tensor
    output_vectors: Tensor

    @property
    def eigenvalues(self) -> Tensor:
        """Those along rows that are read and stored directions, flat."""
        return torch.outer(self.counts[self.counts > 0], self.output_values).reshape(-1)

    @property
    def trace(self) -> Tensor:
        """tr A tr B."""
        return self.counts.sum() * self.output_values.sum()

    def apply(self, v: Tensor, out: Tensor, function: Callable[[Tensor], Tensor]) -> None:
        """Writes function(A ⊗ B) of this layer's part of `v` into `out`."""
        part, written = (t[self.weight].view(self.shape) for t in (v, out))
        rest = function(torch.zeros((), dtype=v.dtype, device=v.device))
        read = self.counts.nonzero().squeeze(1)  # of a large table few rows: the others have no curvature
        along = function(torch.outer(self.counts[read], self.output_values)) - rest
        torch.mul(part, rest, out=written)
        written.index_add_(0, read, (along * (part[read] @ self.output_vectors)) @ self.output_vectors.mT)

    def quadratic(self, v: Tensor) -> Tensor:
        """vᵀ(A ⊗ B)v on this layer's part, a scalar."""
        read = self.counts.nonzero().squeeze(1)
        mixed = (v[self.weight].view(self.shape)[read] @ self.output_vectors).square()
        return (torch.outer(self.counts[read], self.output_values) * mixed).sum()

"""The diagonal of the metric."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from isopath.geometry.batch import Batch
from isopath.geometry.kronecker import Moments
from isopath.geometry.squares import squared
from isopath.geometry.sweep import swept
from isopath.network import Network
from isopath.space import Space


@dataclass(frozen=True)
class Diagonal:
    """diag(G): one number for each parameter (EWC's metric, Kirkpatrick et al. 2017, arXiv 1612.00796).

    Exact for linear maps, convolutions and normalisation where every column of the outputs' curvature is sampled; what
    other operators read is estimated with random signs.

    Args:
        space: the parameters.
        values: `(P,)`, >= 0.
    """

    space: Space
    values: Tensor

    @classmethod
    def of(
        cls, network: Network, theta: Tensor, batches: Iterable[Batch], coverage: float = 0.99,
        samples: int | None = None,
    ) -> Diagonal:  # fmt: skip
        """Built in one pass over the rows, which may be streamed; arguments as for `Kronecker.of`."""
        values, moments = torch.zeros_like(theta), Moments(network)
        for batch in batches:
            seen = swept(network, theta, batch, moments.generator, coverage, samples)
            for grads, rest in () if seen is None else seen.gradients:
                assert seen is not None
                for use, grad in zip(seen.uses, grads):
                    if grad is None:
                        continue
                    if use.kind == "diagonal":
                        moments.outputs(use, grad, seen.count)
                    elif use.kind == "lookup":
                        _read(moments, use.weight or "", use.rows, grad, values)
                    else:
                        found, places = squared(use, grad, seen.count).flatten(0, 1), moments.slices
                        width = found.shape[1] - (use.bias is not None)
                        if use.weight is not None:
                            values[places[use.weight]] += found[:, :width].reshape(-1)
                        if use.bias is not None:
                            values[places[use.bias]] += found[:, -1]
                for name, grad in rest.items():
                    moments.loosely(name, grad.reshape(-1).square())
        for place, found in moments.loose():
            values[place] += found
        return cls(network.space, values)

    @property
    def dimension(self) -> int:
        """P."""
        return len(self.values)

    def mv(self, v: Tensor) -> Tensor:
        """G v."""
        return self.values * v

    def solve(self, b: Tensor, damping: float) -> Tensor:
        """(G + damping I)⁻¹ b."""
        if not damping > 0:
            raise ValueError(f"the diagonal metric needs damping > 0 (G is singular), got {damping}")
        return b / (self.values + damping)

    def norm(self, v: Tensor) -> Tensor:
        """√(vᵀGv)."""
        return (self.values * v.square()).sum().sqrt()

    def spectrum(self, k: int) -> Tensor:
        """The largest entries."""
        return self.values.topk(min(k, len(self.values))).values

    def trace(self) -> float:
        """The sum of the entries."""
        return float(self.values.sum())


def _read(moments: Moments, name: str, rows: Tensor, grad: Tensor, values: Tensor) -> None:
    """Of an embedding: the gradients of an example's reads of one row add up before they are squared."""
    shape = moments.space.shapes[moments.space.names.index(name)]
    grad = grad.reshape(*rows.shape, shape[1])
    own = values[moments.slices[name]].view(shape[0], shape[1])
    for ids, found in zip(rows, grad):
        ids, found = ids[ids >= 0], found[ids >= 0]
        distinct, index = ids.unique(return_inverse=True)
        own[distinct] += found.new_zeros(len(distinct), shape[1]).index_add_(0, index, found).square()

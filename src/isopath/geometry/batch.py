"""Rows of a reference that go through the network together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from isopath.geometry.divergence import Divergence
from isopath.network import Network, Output


@dataclass(frozen=True, eq=False)
class Batch:
    """A few rows of a reference, on the network's device.

    Attributes:
        inputs: what the network takes.
        kept: the outputs to keep, `(N, C)` or `(N, T, C)`.
        weight: each row's share in the mean, `(N,)` or `(N, T)`; the shares of all batches of a part sum to one.
        divergence: how outputs are compared.
        output: picks the output tensor.
    """

    inputs: Any
    kept: Tensor
    weight: Tensor
    divergence: Divergence
    output: Output

    def outputs(self, network: Network, theta: Tensor) -> Tensor:
        """f(theta, x) on these rows."""
        return network(theta, self.inputs, self.output)

    def drift(self, y: Tensor) -> Tensor:
        """This batch's share of the drift, a scalar."""
        return (self.divergence.rows(y, self.kept) * self.weight).sum()


@dataclass(frozen=True, eq=False)
class Streamed:
    """Batches that are made anew whenever they are gone over: no more than one is in memory.

    Args:
        make: gives them from the first on.
    """

    make: Callable[[], Iterator[Batch]]

    def __iter__(self) -> Iterator[Batch]:
        return self.make()

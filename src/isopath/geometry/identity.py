"""The identity metric: plain gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isopath.network import Network


@dataclass(frozen=True)
class Identity:
    """`scale` times the identity: weight space as if it were flat. `scale=0` is the metric where nothing is kept.

    >>> Identity(2).solve(torch.ones(2), damping=1.0)
    tensor([0.5000, 0.5000])
    """

    dimension: int
    scale: float = 1.0
    dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, network: Network, theta: Tensor, batches: Sequence[Any], scale: float = 1.0) -> Identity:
        """The identity on the network's space."""
        return cls(network.space.dimension, scale, network.space.dtype)

    def mv(self, v: Tensor) -> Tensor:
        """`scale * v`."""
        return self.scale * v

    def solve(self, b: Tensor, damping: float) -> Tensor:
        """`b / (scale + damping)`."""
        return b / (self.scale + damping)

    def norm(self, v: Tensor) -> Tensor:
        """`√scale ‖v‖`."""
        return self.scale**0.5 * v.norm()

    def spectrum(self, k: int) -> Tensor:
        """`scale`, as often as asked."""
        return torch.full((min(k, self.dimension),), self.scale, dtype=self.dtype)

    def trace(self) -> float:
        """`scale * P`."""
        return self.scale * self.dimension

"""A given fraction of the weights exactly zero."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isopath.network import Network
from isopath.objectives.objective import Objective
from isopath.space import Space


@dataclass(frozen=True)
class Sparsity(Objective):
    """½‖θ - Πθ‖², with Π the projection on points whose smallest weights, a fraction of them all, are zero.

    The fraction counts parameters of two or more dimensions, together (global magnitude); biases and normalisation are
    left alone. The set is re-chosen as the path moves, until the path lands on it: then its zeros stay.

    Args:
        fraction: share of the weights to be zero, in [0, 1).

    Raises:
        ValueError: the fraction is out of range.
    """

    fraction: float

    def __post_init__(self) -> None:
        if not 0 <= self.fraction < 1:
            raise ValueError(f"fraction must lie in [0, 1), got {self.fraction}; 0.6 makes 60 % of the weights zero")

    def __call__(self, net: Network, theta: Tensor) -> Tensor:
        small = ~self.support(net, theta.detach())
        return 0.5 * (theta * small).square().sum()

    def support(self, net: Network, theta: Tensor) -> Tensor:
        """Which coordinates are kept, `(P,)`: ties at the threshold are broken by position."""
        weights = prunable(net.space)
        count = round(self.fraction * int(weights.sum()))
        magnitude = torch.where(weights, theta.abs(), torch.inf)
        kept = torch.ones_like(weights)
        kept[magnitude.argsort(stable=True)[:count]] = False
        return kept

    def project(self, net: Network, theta: Tensor) -> Tensor:
        """θ with its smallest weights set to zero."""
        return theta * self.support(net, theta)

    def reached(self, net: Network, theta: Tensor) -> bool:
        """Whether enough weights are exactly zero."""
        return sparsity(net.space, theta) >= self.fraction - 1 / max(1, int(prunable(net.space).sum()))


def prunable(space: Space) -> Tensor:
    """The mask `(P,)` of the entries that count: parameters of two or more dimensions."""
    return space.where(lambda name, shape: len(shape) >= 2)


def sparsity(space: Space, theta: Tensor) -> float:
    """The fraction of prunable weights that are exactly zero."""
    weights = prunable(space)
    return float((theta[weights] == 0).double().mean()) if bool(weights.any()) else 0.0

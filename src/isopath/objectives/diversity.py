"""Far from given networks, in weights or in outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isopath.geometry.divergence import divergence_of
from isopath.network import Network, Output
from isopath.objectives.objective import Objective


@dataclass(frozen=True, eq=False)
class Diversity(Objective):
    """Minus the mean log-distance to given networks, in weights or, with inputs, minus the mean divergence of outputs.

    Along an invariant path this finds equivalent networks far apart. The logarithm keeps the pull of the nearest
    network the strongest, so a network moves away from all of them.

    Args:
        models: modules of the same architecture, or points `(P,)`.
        x: inputs to compare outputs on, as a network takes them; `None` compares weights.
        divergence: how outputs are compared (see `Reference`).
        output: picks the output tensor.

    Raises:
        ValueError: no model is given.
    """

    models: Sequence[nn.Module | Tensor]
    x: Any = None
    divergence: str = "hellinger"
    output: Output = None

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("diversity needs at least one network to move away from, got none")

    def points(self, net: Network) -> list[Tensor]:
        """The given networks' points, `(P,)` each."""
        return [
            net.space.flatten(dict(m.named_parameters())) if isinstance(m, nn.Module) else m.to(net.start)
            for m in self.models
        ]

    def __call__(self, net: Network, theta: Tensor) -> Tensor:
        points = self.points(net)
        if self.x is None:
            return -sum(self._log_distance(theta, p, i) for i, p in enumerate(points)) / len(points)  # type: ignore[return-value]
        divergence, y = divergence_of(self.divergence), net(theta, self.x, self.output)
        with torch.no_grad():
            others = [net(p, self.x, self.output) for p in points]
        return -sum(divergence.rows(y, other).mean() for other in others) / len(points)  # type: ignore[return-value]

    def _log_distance(self, theta: Tensor, point: Tensor, index: int) -> Tensor:
        # A path that starts at one of the networks has distance zero and no direction to leave in: a seeded offset of
        # a thousandth of its norm gives it one.
        generator = torch.Generator().manual_seed(index)
        offset = torch.randn(point.shape, generator=generator, dtype=torch.float64).to(point)
        offset *= 1e-3 * point.norm() / offset.norm()
        return 0.5 * (theta - point + offset).square().sum().log()

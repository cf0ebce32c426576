"""Another network, to be moved towards."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from isopath.network import Network
from isopath.objectives.objective import Objective


@dataclass(frozen=True, eq=False)
class Toward(Objective):
    """½‖θ - θ*‖², the squared distance to another network's weights.

    Args:
        target: a module of the same architecture, or a point `(P,)`.
        close: relative distance ‖θ - θ*‖ / ‖θ*‖ at which it counts as reached.
    """

    target: nn.Module | Tensor
    close: float = 1e-3

    def point(self, net: Network) -> Tensor:
        """θ*, `(P,)`."""
        if isinstance(self.target, nn.Module):
            return net.space.flatten(dict(self.target.named_parameters()))
        return self.target.to(net.start)

    def __call__(self, net: Network, theta: Tensor) -> Tensor:
        return 0.5 * (theta - self.point(net)).square().sum()

    def reached(self, net: Network, theta: Tensor) -> bool:
        """Whether the other network is as close as asked."""
        point = self.point(net)
        return bool((theta - point).norm() <= self.close * point.norm())

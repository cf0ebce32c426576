"""Far from given networks, in weights or in outputs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from isopath.arguments import check_kind
from isopath.examples import Examples
from isopath.geometry.divergence import divergence_of
from isopath.network import Network, Output, copied
from isopath.objectives.objective import Objective
from isopath.objectives.task import Task


@dataclass(frozen=True, eq=False)
class Diversity(Objective):
    """Minus the mean log-distance to given networks, in weights or, with inputs, minus the mean divergence of outputs.

    Along an invariant path this finds equivalent networks far apart. The logarithm keeps the pull of the nearest
    network the strongest, so a network moves away from all of them. Outputs are compared batch by batch, as those of a
    `Task` whose targets, the given networks' outputs, are computed once; a given network that is the start itself is
    taken a seeded thousandth of its norm away, where there is a direction to leave it in.

    Args:
        models: modules of the same architecture, or points, `(P,)` each. With inputs a module is compared by its own
            outputs, its frozen parameters and buffers included.
        x: inputs to compare outputs on: a tensor, a tuple or mapping, a `Dataset` or a `DataLoader`; `None` compares
            weights.
        divergence: how outputs are compared (see `Reference`).
        output: picks the output tensor.
        batch_size: rows of a step.

    Raises:
        ValueError: no model is given, an unknown divergence, there are no rows, or a point has another shape.
        TypeError: the models are no list of modules or points.
    """

    models: Sequence[nn.Module | Tensor] | Tensor
    x: Any = None
    divergence: str = "hellinger"
    output: Output = None
    batch_size: int = 256
    _step: tuple[int, int] | None = field(default=None, init=False, repr=False)
    _known: list[tuple[Network, Task]] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        given = self.models.unbind() if isinstance(self.models, Tensor) and self.models.ndim == 2 else self.models
        if isinstance(given, (nn.Module, Tensor)) and not isinstance(given, nn.ModuleList):
            what = type(given).__name__
            raise TypeError(f"diversity takes a list of networks or of points (P,), got one {what}; put it in a list")
        object.__setattr__(self, "models", list(given))
        if not self.models:
            raise ValueError("diversity needs at least one network to move away from, got none")
        for each in self.models:
            check_kind(each, (nn.Module, Tensor), "each network of a diversity", "give modules or points (P,)")
        divergence_of(self.divergence)
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {self.batch_size}")

    def freeze(self, step: int, seed: int) -> Diversity:
        """The same on the batch of a step; in weights there is none."""
        frozen = copy.copy(self)  # shares what is known of the given networks' outputs
        object.__setattr__(frozen, "_step", (step, seed))
        return frozen

    def points(self, net: Network) -> list[Tensor]:
        """The given networks' points, `(P,)` each."""
        found = [
            net.space.flatten(dict(m.named_parameters())).to(net.start) if isinstance(m, nn.Module) else m.to(net.start)
            for m in self.models
        ]
        for i, point in enumerate(found):
            if point.shape != net.start.shape:
                got, expected = tuple(point.shape), tuple(net.start.shape)
                raise ValueError(f"point {i} of a diversity has shape {got}, expected {expected}, the network's")
        return found

    def __call__(self, net: Network, theta: Tensor) -> Tensor:
        if self.x is None:
            points = self.points(net)
            return -sum(self._log_distance(theta, p, i) for i, p in enumerate(points)) / len(points)  # type: ignore[return-value]
        task = self._compared(net)
        return (task if self._step is None else task.freeze(*self._step))(net, theta)

    def _compared(self, net: Network) -> Task:
        """The given networks' outputs `(N, M, C)` as what to move away from."""
        if not self._known or self._known[0][0] is not net:
            examples = Examples.of(self.x, what="a diversity's inputs")
            batches = [examples.take(rows, net.space.device)[0]
                       for rows in torch.arange(len(examples)).split(self.batch_size)]  # fmt: skip
            with torch.no_grad():
                others = [self._outputs(net, batches, given, i) for i, given in enumerate(self.models)]
            divergence = divergence_of(self.divergence)

            def nearness(y: Tensor, targets: Tensor) -> Tensor:
                apart = [divergence.rows(y, target) for target in targets.unbind(1)]
                return -torch.stack(apart).mean(0)

            task = Task(examples, torch.stack(others, 1), nearness, self.output, self.batch_size)
            self._known[:] = [(net, task)]  # of this network: another has other frozen parts, or another precision
        return self._known[0][1]

    def _outputs(self, net: Network, batches: list[Any], given: nn.Module | Tensor, index: int) -> Tensor:
        """Of one given network, with what of it does not move too; a thousandth away where they are the start's own."""
        if isinstance(given, nn.Module):
            names = set(net.space.names)
            twin = copied(given).to(net.space.device, net.space.dtype)
            own = Network(twin, lambda name: name in names)
        else:
            own = net
        point = own.start if isinstance(given, nn.Module) else given.to(net.start)

        def run(network: Network, theta: Tensor) -> Tensor:
            return torch.cat([network(theta, inputs, self.output) for inputs in batches])

        found = run(own, point)
        if torch.equal(point, net.start) and (own is net or torch.equal(found, run(net, point))):
            found = run(own, point + _offset(point, index))
        net.evaluations += own.evaluations if own is not net else 0.0
        return found

    def _log_distance(self, theta: Tensor, point: Tensor, index: int) -> Tensor:
        return 0.5 * (theta - point + _offset(point, index)).square().sum().log()


def _offset(point: Tensor, index: int) -> Tensor:
    """A seeded thousandth of the norm: a path that starts at one of the networks has no direction to leave it in."""
    generator = torch.Generator().manual_seed(index)
    offset = torch.randn(point.shape, generator=generator, dtype=torch.float64).to(point)
    return offset * (1e-3 * point.norm() / offset.norm())

"""The training of a curve: Adam on the points between its ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from isopath.network import Network
from isopath.objectives import Objective
from isopath.path import Bezier, PolyChain

Sampling = Literal["uniform", "arc"]
KNOTS = 33  # points at which the arc length is measured


class Training:
    """Adam on the points between the ends, its rate going down in a straight line, on the objective at one t per step.

    Iterating trains in place and gives a row per step: step, t, objective, gradient evaluations. It goes on from where
    it stands; `state` and `restore` carry that over to another process, to the bit.

    Args:
        path: whose inner points move.
        network: turns points into numbers.
        objective: what is to be low along the path.
        steps: in all.
        rate: of Adam at first.
        sampling: t evenly in [0, 1], or evenly in arc length.
        seed: of t and of the objective's batches.
    """

    def __init__(
        self, path: Bezier | PolyChain, network: Network, objective: Objective, steps: int, rate: float,
        sampling: Sampling = "uniform", seed: int = 0,
    ) -> None:  # fmt: skip
        self.path, self.network, self.objective = path, network, objective
        self.steps, self.rate, self.sampling, self.seed = steps, rate, sampling, seed
        self.step = 0
        self._inner = list(path.points[1:-1])
        self._optimiser = torch.optim.Adam(self._inner, rate)
        self._generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Iterator[dict[str, float]]:
        while self.step < self.steps:
            yield self._stepped()

    def _stepped(self) -> dict[str, float]:
        self._optimiser.param_groups[0]["lr"] = self.rate * (1 - self.step / self.steps)
        t = float(torch.rand((), generator=self._generator, dtype=torch.float64))
        t = at_length(self.path, t) if self.sampling == "arc" else t
        weights = self.path.weights(t)
        theta = combined(self.path.points, weights).requires_grad_(True)
        value = self.objective.freeze(self.step, self.seed)(self.network, theta)
        (gradient,) = torch.autograd.grad(value, theta)
        for point, weight in zip(self._inner, weights[1:-1]):  # dγ(t)/dp is the point's weight
            point.grad = gradient * weight
        self._optimiser.step()
        for point in self._inner:
            point.grad = None
        row = {"step": self.step, "t": t, "objective": float(value.detach())}
        self.step += 1
        return {**row, "evaluations": self.network.evaluations}

    def state(self) -> dict[str, Tensor]:
        """What another process needs to go on: points, moments, steps and gradient evaluations."""
        found = {"steps": torch.tensor([self.step]), "evaluations": torch.tensor([self.network.evaluations]).double()}
        for k, point in enumerate(self._inner):
            found[f"point.{k}"] = point
            for name in ("exp_avg", "exp_avg_sq"):
                if point in self._optimiser.state:
                    found[f"{name}.{k}"] = self._optimiser.state[point][name]
        return found

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes back to where `state` was taken."""
        self.step = int(state["steps"])
        self.network.evaluations = float(state["evaluations"])
        self._generator.manual_seed(self.seed)
        for _ in range(self.step):
            torch.rand((), generator=self._generator, dtype=torch.float64)
        for k, point in enumerate(self._inner):
            point.copy_(state[f"point.{k}"])
            if f"exp_avg.{k}" in state:
                moments = {name: state[f"{name}.{k}"].to(point) for name in ("exp_avg", "exp_avg_sq")}
                self._optimiser.state[point] = {"step": torch.tensor(float(self.step)), **moments}


def combined(points: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Σ weight * point."""
    total = torch.zeros_like(points[0])
    for weight, point in zip(weights, points):
        if weight:
            total.add_(point, alpha=weight)
    return total


def at_length(path: Bezier | PolyChain, share: float) -> float:
    """The t at which a share of the arc length is behind."""
    grid = torch.linspace(0, 1, KNOTS, dtype=torch.float64)
    points = [combined(path.points, path.weights(float(t))) for t in grid]
    lengths = torch.tensor([0.0, *(float((b - a).norm()) for a, b in pairwise(points))]).double().cumsum(0)
    at = share * float(lengths[-1])
    k = min(max(int(torch.searchsorted(lengths, at)), 1), KNOTS - 1)
    inside = (at - float(lengths[k - 1])) / max(float(lengths[k] - lengths[k - 1]), 1e-300)
    return float(grid[k - 1] + inside * (grid[k] - grid[k - 1]))

"""A curve through weight space between two networks, and the network at each of its points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn

from isopath.connect.statistics import BatchNetwork, normalisations, reestimated
from isopath.network import Network
from isopath.objectives import Objective, as_objective
from isopath.path import Bezier, Path, PolyChain, Segment, check_unit
from isopath.space import Trainable
from isopath.symmetry import Permutation

Kind = Literal["bezier", "chain", "segment"]
KNOTS = 33  # points at which the arc length is measured


@dataclass(frozen=True, eq=False)
class Curve(Path):
    """A path between two networks, with what does not lie in weight space: their buffers.

    Attributes:
        path: the points.
        network: the first network.
        ends: buffers of both networks by name.
        history: step, t, objective and gradient evaluations of the training.
    """

    path: Path
    network: Network
    ends: tuple[dict[str, Tensor], dict[str, Tensor]]
    history: list[dict[str, float]] = field(default_factory=list)

    def __call__(self, t: float) -> Tensor:
        return self.path(t)

    def __repr__(self) -> str:
        spent = self.history[-1]["evaluations"] if self.history else 0
        return f"Curve({type(self.path).__name__}, length={self.length():.4g}, evaluations={spent:.0f})"

    def model(self, t: float, data: Any = None) -> nn.Module:
        """A new module with the weights at `t`.

        Args:
            t: in [0, 1].
            data: inputs on which running statistics are estimated anew; without it they lie between those of the ends.
        """
        module = self.network.model(self(check_unit(t)))
        named = dict(module.named_buffers())
        with torch.no_grad():
            for name, a in self.ends[0].items():
                b = self.ends[1][name]
                named[name].copy_(torch.lerp(a, b, t) if a.is_floating_point() else (a if t < 0.5 else b))
        ended = t in (0, 1)
        return module if data is None or ended else reestimated(module, data)


def connect(
    model_a: nn.Module,
    model_b: nn.Module,
    objective: Objective | Any = None,
    curve: Kind = "bezier",
    bends: int = 1,
    steps: int = 1000,
    rate: float = 1e-3,
    sampling: Literal["uniform", "arc"] = "uniform",
    permutation: Permutation | None = None,
    trainable: Trainable = None,
    seed: int = 0,
) -> Curve:
    """A curve of low loss between two networks (Garipov et al. 2018, arXiv 1802.10026).

    The ends stay as they are; the points between are trained by Adam, its rate going down in a straight line, on the
    objective at one random t per step: they minimise its mean over the curve. Normalisation layers use the statistics
    of each batch meanwhile. Align the networks first (`align`), or give the permutation.

    Args:
        model_a: the network at t = 0.
        model_b: the network at t = 1, of the same architecture; neither is modified.
        objective: what is to be low along the curve; not needed for a segment.
        curve: `"bezier"` of degree `bends + 1`, `"chain"` of straight pieces through `bends` points, or the straight
            `"segment"`.
        bends: points between the ends.
        steps: of training.
        rate: of Adam at first.
        sampling: t evenly in [0, 1], or evenly in arc length.
        permutation: of `model_b`, applied before.
        trainable: the parameters that move; the others must be equal in both networks.
        seed: of t and of the objective's batches.

    Raises:
        ValueError: the networks differ in a shape, an option is unknown, or there is no objective to train on.
    """
    if curve not in ("bezier", "chain", "segment"):
        raise ValueError(f"curve must be 'bezier', 'chain' or 'segment', got {curve!r}")
    if bends < 1 or steps < 0:
        raise ValueError(f"bends must be >= 1 and steps >= 0, got {bends} and {steps}")
    if sampling not in ("uniform", "arc"):
        raise ValueError(f"sampling must be 'uniform' or 'arc', got {sampling!r}")
    if permutation is not None:
        model_b = permutation(model_b)
    network, other = BatchNetwork(model_a, trainable), Network(model_b, trainable)
    _same(network, other)
    ends = dict(model_a.named_buffers()), dict(model_b.named_buffers())
    kept = tuple({name: b.detach().clone() for name, b in buffers.items()} for buffers in ends)
    a, b = network.start, other.start
    plain = network if not normalisations(model_a) else Network(model_a, trainable)
    if curve == "segment":
        return Curve(Segment(a, b), plain, kept)  # type: ignore[arg-type]
    if objective is None:
        raise ValueError("a curve is trained on an objective, as Task(x, y); without one there is only curve='segment'")
    points = [a, *(torch.lerp(a, b, k / (bends + 1)) for k in range(1, bends + 1)), b]
    made: Bezier | PolyChain = Bezier(points) if curve == "bezier" else PolyChain(points)
    history = _trained(made, network, as_objective(objective), steps, rate, sampling, seed)
    return Curve(made, plain, kept, history)  # type: ignore[arg-type]


def _trained(
    path: Bezier | PolyChain, network: Network, objective: Objective, steps: int, rate: float, sampling: str, seed: int
) -> list[dict[str, float]]:
    """Moves the points between the ends, in place."""
    generator = torch.Generator().manual_seed(seed)
    inner = path.points[1:-1]
    optimiser, history = torch.optim.Adam(inner, rate), []
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
        t = float(torch.rand((), generator=generator, dtype=torch.float64))
        if sampling == "arc":
            t = _at_length(path, t)
        weights = path.weights(t)
        theta = _combined(path.points, weights).requires_grad_(True)
        value = objective.freeze(step, seed)(network, theta)
        (gradient,) = torch.autograd.grad(value, theta)
        for point, weight in zip(inner, weights[1:-1]):  # dγ(t)/dp is the point's weight
            point.grad = gradient * weight
        optimiser.step()
        history.append({"step": step, "t": t, "objective": float(value.detach()), "evaluations": network.evaluations})
    for point in inner:
        point.grad = None
    return history


def _combined(points: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = torch.zeros_like(points[0])
    for weight, point in zip(weights, points):
        if weight:
            total.add_(point, alpha=weight)
    return total


def _at_length(path: Bezier | PolyChain, share: float) -> float:
    """The t at which a share of the arc length is behind."""
    grid = torch.linspace(0, 1, KNOTS, dtype=torch.float64)
    points = [_combined(path.points, path.weights(float(t))) for t in grid]
    lengths = torch.tensor([0.0, *(float((b - a).norm()) for a, b in pairwise(points))]).double().cumsum(0)
    at = share * float(lengths[-1])
    k = min(max(int(torch.searchsorted(lengths, at)), 1), KNOTS - 1)
    inside = (at - float(lengths[k - 1])) / max(float(lengths[k] - lengths[k - 1]), 1e-300)
    return float(grid[k - 1] + inside * (grid[k] - grid[k - 1]))


def _same(a: Network, b: Network) -> None:
    shapes = [dict(zip(n.space.names, n.space.shapes)) for n in (a, b)]
    if shapes[0] != shapes[1]:
        names = [n for n in {**shapes[0], **shapes[1]} if shapes[0].get(n) != shapes[1].get(n)]
        said = "; ".join(
            f"{n!r}: " + " and ".join(str(tuple(s[n])) if n in s else "missing" for s in shapes) for n in names[:3]
        )
        raise ValueError(f"only networks of the same shapes can be connected; {len(names)} differ: {said}")

"""The loss over the plane through three points of a curve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isopath.connect.curve import Curve
from isopath.connect.statistics import reestimated
from isopath.evaluate import evaluate
from isopath.objectives import Task
from isopath.path import Bezier, PolyChain


@dataclass(frozen=True)
class Plane:
    """Loss and accuracy on a grid in the plane through both ends and the curve's bend, with equal units on both axes.

    Attributes:
        x, y: the grid's coordinates; the first end is the origin, the second lies on the x axis.
        loss, accuracy: a row for each y; accuracies are fractions, `None` for a regression.
        curve: its points in these coordinates; exactly there for a Bezier curve or a chain of one bend, else the
            nearest points of the plane.
        ends: both networks' coordinates.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    loss: tuple[tuple[float, ...], ...]
    accuracy: tuple[tuple[float | None, ...], ...]
    curve: tuple[tuple[float, float], ...]
    ends: tuple[tuple[float, float], tuple[float, float]]


def plane(curve: Curve, task: Task, points: int = 15, margin: float = 0.25, data: Any = None) -> Plane:
    """Scores a task on a grid of networks in the plane of a curve (the figure of Garipov et al. 2018).

    Args:
        curve: between two networks.
        task: what is scored, on all its rows: `points²` evaluations of it, so give it few.
        points: of the grid on each axis.
        margin: how far beyond the curve's box the grid reaches, as a share of the distance between the ends.
        data: inputs on which running statistics are estimated anew at every point.

    Raises:
        ValueError: the ends are equal, or there are fewer than two points.
    """
    if points < 2:
        raise ValueError(f"the grid needs at least 2 points on each axis, got {points}")
    start, u, v, distance = _axes(curve)
    line = torch.stack([_placed(curve(i / 64), start, u, v) for i in range(65)])
    low, high = line.amin(0) - margin * distance, line.amax(0) + margin * distance
    xs, ys = (torch.linspace(float(a), float(b), points, dtype=torch.float64).tolist() for a, b in zip(low, high))
    scores = []
    for y in ys:
        row = []
        for x in xs:
            theta = start + x * u + y * v
            module = curve.at(theta, min(max(x / distance, 0.0), 1.0))
            row.append(evaluate(module if data is None else reestimated(module, data), task))
        scores.append(row)
    return Plane(
        tuple(xs), tuple(ys),
        tuple(tuple(s.loss for s in row) for row in scores), tuple(tuple(s.accuracy for s in row) for row in scores),
        tuple((float(x), float(y)) for x, y in line), ((0.0, 0.0), (distance, 0.0)),
    )  # fmt: skip


def _axes(curve: Curve) -> tuple[Tensor, Tensor, Tensor, float]:
    """Origin, two orthonormal directions, and the distance between the ends."""
    assert isinstance(curve.path, (Bezier, PolyChain))
    start, end = curve.path.points[0], curve.path.points[-1]
    distance = float((end - start).norm())
    if not distance:
        raise ValueError("both ends are the same network: there is no plane through them")
    u = (end - start) / distance
    inner = [point - start for point in curve.path.points[1:-1]]
    bend = max((p - torch.dot(p, u) * u for p in inner), key=lambda p: float(p.norm()), default=torch.zeros_like(u))
    if float(bend.norm()) < 1e-6 * distance:  # a straight line: any direction across it
        bend = torch.randn(len(u), generator=torch.Generator().manual_seed(0)).to(u)
        bend -= torch.dot(bend, u) * u
    return start, u, bend / bend.norm(), distance


def _placed(theta: Tensor, start: Tensor, u: Tensor, v: Tensor) -> Tensor:
    offset = theta - start
    return torch.stack([torch.dot(offset, u), torch.dot(offset, v)]).double().cpu()

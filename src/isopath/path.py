"""Paths through weight space, callable on [0, 1]."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from isopath.arguments import check_number

if TYPE_CHECKING:
    from isopath.geometry.metric import Metric


class Path(ABC):
    """A continuous curve of points, `path(t)` of shape `(P,)` for t in [0, 1]."""

    @abstractmethod
    def __call__(self, t: float) -> Tensor:
        """The point at `t`."""

    def sample(self, count: int) -> list[Tensor]:
        """`count` points at equally spaced t, both ends included."""
        if count < 2:
            raise ValueError(f"a sample has both ends and so at least 2 points, got {count}")
        return [self(i / (count - 1)) for i in range(count)]

    def length(self, metric: Metric | Callable[[Tensor], Metric] | None = None, points: int = 65) -> float:
        """Its length: Euclidean, under one metric, or under the metric of each point.

        Args:
            metric: `None` for the Euclidean length; a metric for √(vᵀGv) with one G all along; or a function from a
                point to the metric there, evaluated at the middle of each piece.
            points: the sampling of a curved path.
        """
        vertices = self._vertices(points)
        total = 0.0
        for a, b in pairwise(vertices):
            here = metric if metric is None or hasattr(metric, "norm") else metric(0.5 * (a + b))  # type: ignore[operator]
            total += float((b - a).norm() if here is None else here.norm(b - a))
        return total

    def _vertices(self, points: int) -> Sequence[Tensor]:
        return self.sample(points)


def check_path(given: object) -> None:
    """Raises `TypeError` unless it is a path whose points are networks, as a curve is."""
    if not isinstance(given, Path) or not hasattr(given, "model"):
        raise TypeError(
            f"what is walked along is a path of networks, got {type(given).__name__}; make one with ip.connect(a, b) "
            "or Generator.path(z, w)"
        )


def check_unit(t: float) -> float:
    """`t`, or a `ValueError` where it lies outside [0, 1]."""
    check_number(t, "t")
    if not 0 <= t <= 1:
        raise ValueError(f"a path is defined for t in [0, 1], got {t}")
    return float(t)


@dataclass(frozen=True, eq=False)
class PolyChain(Path):
    """Straight pieces through given points, at constant Euclidean speed.

    Args:
        points: at least one, `(P,)` each; the ends are exact.
    """

    points: Sequence[Tensor]

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError("a path needs at least one point, got none")

    def __call__(self, t: float) -> Tensor:
        t = check_unit(t)
        lengths = torch.tensor([float((b - a).norm()) for a, b in pairwise(self.points)], dtype=torch.float64)
        total = float(lengths.sum())
        if t == 0 or total == 0:
            return self.points[0].clone()
        if t == 1:
            return self.points[-1].clone()
        ends = lengths.cumsum(0)
        piece = min(int(torch.searchsorted(ends, t * total)), len(lengths) - 1)
        before = float(ends[piece] - lengths[piece])
        share = (t * total - before) / max(float(lengths[piece]), 1e-300)
        return torch.lerp(self.points[piece], self.points[piece + 1], share)

    def weights(self, t: float) -> list[float]:
        """The share of each point where the pieces take equal parts of [0, 1]; they sum to one."""
        pieces = max(1, len(self.points) - 1)
        at = min(int(t * pieces), pieces - 1)
        return [max(0.0, 1 - abs(t * pieces - k)) if at <= k <= at + 1 else 0.0 for k in range(len(self.points))]

    def _vertices(self, points: int) -> Sequence[Tensor]:
        return self.points


class Segment(PolyChain):
    """The straight line between two points."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        super().__init__((a, b))


@dataclass(frozen=True, eq=False)
class Bezier(Path):
    """A Bezier curve Σ C(n, k) tᵏ (1 - t)ⁿ⁻ᵏ pₖ of degree n, its ends exact.

    Args:
        points: the control points, at least two, `(P,)` each.
    """

    points: Sequence[Tensor]

    def __post_init__(self) -> None:
        if len(self.points) < 2:
            raise ValueError(f"a Bezier curve needs at least 2 control points, got {len(self.points)}")

    def __call__(self, t: float) -> Tensor:
        t = check_unit(t)
        if t in (0, 1):
            return self.points[-int(t)].clone()
        total = torch.zeros_like(self.points[0])
        for weight, point in zip(self.weights(t), self.points):
            total.add_(point, alpha=weight)
        return total

    def weights(self, t: float) -> list[float]:
        """The share of each control point at `t`; they sum to one."""
        n = len(self.points) - 1
        return [math.comb(n, k) * t**k * (1 - t) ** (n - k) for k in range(n + 1)]

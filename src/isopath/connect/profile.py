"""A curve seen from its points: loss, accuracy and drift along it, and the barrier in between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from isopath.arguments import check_count, check_kind
from isopath.connect.curve import Curve
from isopath.evaluate import evaluate
from isopath.geometry.reference import Reference
from isopath.network import Network
from isopath.objectives import Task
from isopath.path import check_path

GRID = 25


@dataclass(frozen=True)
class Profile:
    """Figures on an even grid of t.

    Attributes:
        t: the grid.
        loss, accuracy: of the task at each t; accuracies are fractions, `None` for a regression.
        drift: from the outputs at t = 0, where a reference was given.
        lengths: arc length from t = 0.
    """

    t: tuple[float, ...]
    loss: tuple[float, ...]
    accuracy: tuple[float | None, ...]
    drift: tuple[float, ...] | None
    lengths: tuple[float, ...]

    @property
    def barrier(self) -> float:
        """max over t of L(t) - ((1 - t) L(0) + t L(1))."""
        return _above(self.t, self.loss)

    @property
    def accuracy_barrier(self) -> float:
        """The largest loss of accuracy against the line between the ends', a fraction."""
        return _above(self.t, [-float(value or 0) for value in self.accuracy])

    def mean(self, name: str, by_length: bool = False) -> float:
        """The mean of `"loss"`, `"accuracy"` or `"drift"` over t, or over the arc length (trapezoids)."""
        values = [float(v) for v in getattr(self, name)]
        at = self.lengths if by_length and self.lengths[-1] > 0 else self.t
        pieces = zip(at, at[1:], values, values[1:])
        return sum((high - low) * (a + b) / 2 for low, high, a, b in pieces) / (at[-1] - at[0])

    def __repr__(self) -> str:
        scores = [value for value in self.accuracy if value is not None]
        said = f", accuracy {min(scores):.4f} to {max(scores):.4f}" if scores else ""
        return f"Profile(loss {min(self.loss):.4g} to {max(self.loss):.4g}, barrier={self.barrier:.4g}{said})"


def _above(t: tuple[float, ...], values: Any) -> float:
    return max(v - ((1 - at) * values[0] + at * values[-1]) for at, v in zip(t, values))


def along(
    curve: Curve, task: Task, points: int = GRID, data: Any = None, keep: Reference | None = None
) -> Profile:
    """Loss and accuracy of a task along a curve, both ends included.

    Args:
        curve: between two networks, or a generator's path between two latents.
        task: what is scored, on all its rows.
        points: of the even grid in t.
        data: inputs on which running statistics are estimated anew at every t between the ends.
        keep: inputs on which the drift from t = 0 is measured.
    """
    check_path(curve)
    check_kind(task, Task, "the second argument", "give ip.Task(x, y)")
    check_count(points, "points")
    if points < 2:
        raise ValueError(f"a profile has both ends and so at least 2 points, got {points}")
    grid = [i / (points - 1) for i in range(points)]
    scores, drifts, lengths, part, before = [], [], [0.0], None, None
    for t in grid:
        module = curve.model(t, data)
        scores.append(evaluate(module, task))
        if keep is not None:
            network = Network(module)
            part = keep.whole(network, network.start) if part is None else part
            drifts.append(sum(float(b.drift(b.outputs(network, network.start)).detach()) for b in part.batches))
        theta = curve(t)
        if before is not None:
            lengths.append(lengths[-1] + float((theta - before).norm()))
        before = theta
    return Profile(
        tuple(grid), tuple(s.loss for s in scores), tuple(s.accuracy for s in scores),
        tuple(drifts) if keep is not None else None, tuple(lengths),
    )  # fmt: skip


def barrier(curve: Curve, task: Task, points: int = GRID, data: Any = None) -> float:
    """max over t of the loss above the line between the ends' losses, on an even grid of `points`."""
    return along(curve, task, points, data).barrier

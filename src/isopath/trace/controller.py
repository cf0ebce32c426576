"""How far: step lengths that the objective and the tolerance both accept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["accepted", "objective", "drift"]


@dataclass(frozen=True)
class Backtracking:
    """Grow after an accepted step, halve after a rejected one; no learning rate to choose.

    The objective must fall by `descent` of what its slope promises (Armijo), on the same batch before and after, at the
    predictor: judged after the corrector, every step that brings old drift down would look like ascent. The drift must
    be within the tolerance after the corrector. The objective guards against running away where the drift sees
    nothing, as in a linear network; the drift guards the rest.

    Args:
        stride: the most predictor steps between two judgements of the drift. The number doubles while the predictor's
            drift stays below `room` of the tolerance, is halved when it passes a half, and starts at one: where there
            is room, the kept outputs are evaluated seldom.
        room: share of the tolerance below which attempts grow longer.
        first: the length of the first trial step, as a fraction of ‖θ‖.
        anneal: share of the budget after which the rates go down in a straight line from the typical one: a batch's
            line search finds the longest step that the batch allows, and noise is averaged only by shorter ones.
        growth: factor after an accepted step.
        cut: factor after a rejected one.
        descent: Armijo's constant, in (0, 1).
        share: the most drift that one predictor may add by the metric's own account, as a fraction of the tolerance.
        tries: lengths tried against the objective before an attempt is given up.
        patience: rejections in a row after which the trace stops.
        smallest: smallest length, relative to ‖θ‖, that is tried.
    """

    stride: int = 32
    room: float = 0.3
    first: float = 1e-3
    anneal: float = 0.5
    growth: float = 1.2
    cut: float = 0.5
    descent: float = 0.1
    share: float = 0.1
    tries: int = 4
    patience: int = 12
    smallest: float = 1e-8

    def longest(self, metric_norm: float, tolerance: float) -> float:
        """The multiple h of the tangent at which ½h²uᵀGu is `share * tolerance`; infinite where G sees nothing."""
        return (2 * self.share * tolerance) ** 0.5 / metric_norm if metric_norm > 0 else float("inf")

    def descends(self, before: float, after: float, slope: float, rate: float) -> bool:
        """Armijo's condition; a NaN does not descend."""
        return after <= before + self.descent * rate * slope

    def next_rate(self, rate: float, verdict: Verdict, refused: bool = True) -> float:
        """The multiple of the tangent that the next step tries; it doubles until one is refused for the first time."""
        return rate * (self.cut if verdict != "accepted" else self.growth if refused else 2.0)

    def cap(self, typical: float, progress: float) -> float:
        """The largest rate at a share `progress` of the budget, with `typical` the mean rate before annealing."""
        if progress <= self.anneal or not typical:
            return float("inf")
        return typical * max(0.01, (1 - progress) / (1 - self.anneal))

    def next_typical(self, typical: float, rate: float, progress: float) -> float:
        """The running geometric mean of accepted rates, no less than a third of the last; frozen in annealing."""
        if progress > self.anneal or not typical:
            return typical or rate
        return max(typical**0.95 * rate**0.05, rate / 3)

    def next_stride(self, stride: int, share: float) -> int:
        """Predictor steps of the next attempt, after one whose predictor had drift `share * tolerance`."""
        if share < self.room:
            return min(2 * stride, self.stride)
        return max(1, stride // 2) if share > 0.5 else stride

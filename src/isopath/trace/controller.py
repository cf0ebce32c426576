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
        first: the length of the first trial step, as a fraction of ‖θ‖.
        growth: factor after an accepted step.
        cut: factor after a rejected one.
        descent: Armijo's constant, in (0, 1).
        share: the most drift that one predictor may add by the metric's own account, as a fraction of the tolerance.
        patience: rejections in a row after which the trace stops.
        smallest: smallest length, relative to ‖θ‖, that is tried.
    """

    first: float = 1e-3
    growth: float = 1.5
    cut: float = 0.5
    descent: float = 0.1
    share: float = 0.1
    patience: int = 20
    smallest: float = 1e-8

    def longest(self, metric_norm: float, tolerance: float) -> float:
        """The step length h at which ½h²uᵀGu is `share * tolerance`; infinite where the metric sees nothing."""
        return (2 * self.share * tolerance) ** 0.5 / metric_norm if metric_norm > 0 else float("inf")

    def descends(self, before: float, after: float, slope: float, length: float) -> bool:
        """Armijo's condition; a NaN does not descend."""
        return after <= before + self.descent * length * slope

    def next_length(self, length: float, verdict: Verdict) -> float:
        """The length of the next attempt."""
        return length * (self.growth if verdict == "accepted" else self.cut)

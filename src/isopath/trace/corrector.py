"""Back: pulling accumulated drift down without undoing the step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from isopath.geometry.reference import Drift, KeptAll
from isopath.trace.direction import Frame


@dataclass(frozen=True)
class Corrected:
    """A point after correction."""

    theta: Tensor
    drift: Drift
    length: float  # the step length that worked last
    applied: bool


@dataclass(frozen=True)
class GaussNewton:
    """θ - c (G + μI)⁻¹∇D(θ): Gauss-Newton on the drift, damped, its length found by backtracking.

    The drift is far from quadratic where outputs have moved: at a confident row the curvature at the point is much
    smaller than on the way back, and the full step overshoots. So the length is remembered between steps, grown when
    it works and cut when the drift of the metric's rows does not fall.

    Args:
        threshold: drifts below this fraction of the tolerance are left alone (a correction costs a gradient).
        iterations: the most corrections after one predictor.
        tries: the most lengths tried in each.
    """

    threshold: float = 0.1
    iterations: int = 1
    tries: int = 3

    def __call__(
        self,
        kept: KeptAll,
        frame: Frame,
        theta: Tensor,
        drift: Drift,
        target: float,
        length: float,
        support: Tensor | None = None,
    ) -> Corrected:
        """Corrects until the drift is at most `threshold * target`, or the iterations are spent.

        Args:
            kept: what is kept.
            frame: the metric and its damping.
            theta: the predictor, `(P,)`.
            drift: its drift.
            target: the tolerance.
            length: the step length to try first.
            support: the coordinates that may move.
        """
        applied = False
        for _ in range(self.iterations):
            if drift.judged <= self.threshold * target:
                break
            tangent = frame.metric.solve(kept.gradient(theta), frame.damping)
            if support is not None:
                tangent *= support
            found = self._backtrack(kept, theta, tangent, drift, length)
            length = found.length
            if not found.applied:
                break
            theta, drift, applied = found.theta, found.drift, True
        return Corrected(theta, drift, length, applied)

    def _backtrack(self, kept: KeptAll, theta: Tensor, tangent: Tensor, drift: Drift, length: float) -> Corrected:
        for _ in range(self.tries):
            trial = theta - length * tangent
            now = kept.drift(trial)
            if now.metric < drift.metric:
                return Corrected(trial, now, min(1.0, 1.5 * length), True)
            length *= 0.4
        return Corrected(theta, drift, length, False)

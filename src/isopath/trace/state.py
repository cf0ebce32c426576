"""Where a trace is: everything the next attempt depends on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from isopath.geometry.reference import Drift
from isopath.objectives import Objective
from isopath.trace.controller import Verdict
from isopath.trace.direction import Frame
from isopath.trace.status import Status

if TYPE_CHECKING:
    from torch import nn

    from isopath.network import Network

Watched = tuple[tuple[int, float, int], ...]  # bin of the budget, sum of values, their count


@dataclass(frozen=True, eq=False)
class Ready:
    """Batch, gradient and tangent at a point; attempts from the same point share them."""

    objective: Objective  # frozen on the step's batch
    before: float
    slope: float
    cotangent: Tensor | None  # where there is momentum
    tangent: Tensor
    norm: float  # of the tangent
    longest: float  # multiple of the tangent
    flat: bool  # nothing of the gradient is left in the tangent


@dataclass(frozen=True, eq=False)
class Moved:
    """The end of one predictor step."""

    theta: Tensor
    objective: float
    rate: float  # the multiple of the tangent that worked, or would be tried next
    descended: bool
    refused: bool  # whether a longer one was tried


@dataclass(frozen=True, eq=False)
class State:
    """One attempt of a trace, and all that the next one needs.

    Attributes:
        theta: the current point, `(P,)`: the attempt's end if it was accepted, else its start.
        accepted: whether the attempt was accepted; `why` says what decided.
        step: predictor steps of accepted attempts so far; an attempt takes up to `stride`.
        attempt: attempts so far.
        drift: the judged drift of the current point; `parts` has both of its parts.
        tried: the drift of the attempt, accepted or not; `None` if the objective decided first.
        objective_before, objective: before and after the attempt's last predictor step, on its batch.
        step_length: of the attempt's last predictor step, in weight space.
        length: walked so far in weight space.
        evaluations: gradient evaluations spent so far.
        status, reason: `"running"` until the trace ends.
    """

    theta: Tensor
    momentum: Tensor | None = None
    second: Tensor | None = None  # running mean of the gradient's square, where the steps are Adam's
    support: Tensor | None = None
    accepted: bool = True
    why: Verdict = "accepted"
    step: int = 0
    attempt: int = 0
    parts: Drift = field(default_factory=lambda: Drift(0.0, 0.0))
    tried: Drift | None = None
    objective_before: float = float("nan")
    objective: float = float("nan")
    step_length: float = 0.0
    rate: float = 0.0  # multiple of the tangent that the next step tries; 0 before the first
    refused: bool = False  # whether any step has been refused yet
    typical: float = 0.0  # running geometric mean of the rates accepted
    stride: int = 1
    age: int = 0  # accepted attempts since the metric was built
    correction: float = 1.0
    free: float = 0.0  # share of the budget that was spent when the corrector last had nothing to do
    initial: float = float("nan")  # the objective on the first batch
    watched: Watched = ()  # sums of the objective's batch values over parts of the budget
    rejected: int = 0
    length: float = 0.0
    evaluations: float = 0.0
    damping: float = 0.0
    status: Status = "running"
    reason: str = "The trace has not ended."
    network: Network | None = None
    frame: Frame | None = None
    ready: Ready | None = None

    @property
    def drift(self) -> float:
        """The judged drift of the current point."""
        return self.parts.judged

    def model(self) -> nn.Module:
        """A new module at the current point."""
        assert self.network is not None
        return self.network.model(self.theta)

    def row(self) -> dict[str, Any]:
        """The attempt as a row of the history."""
        return {
            "attempt": self.attempt,
            "step": self.step,
            "accepted": self.accepted,
            "why": self.why,
            "objective_before": self.objective_before,
            "objective": self.objective,
            "drift": self.tried and self.tried.judged,
            "drift_metric": self.tried and self.tried.metric,
            "drift_check": self.tried and self.tried.check,
            "step_length": self.step_length,
            "stride": self.stride,
            "damping": self.damping,
            "length": self.length,
            "evaluations": round(self.evaluations, 3),
        }

"""The loop: predictor, judge, corrector, judge; accepted and rejected attempts alike."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from isopath.geometry.reference import Drift, Kept, KeptAll, Reference, References
from isopath.network import Network
from isopath.objectives import Objective, as_objective, sparsity
from isopath.objectives.objective import check_scalar
from isopath.trace.controller import Backtracking, Verdict
from isopath.trace.corrector import GaussNewton
from isopath.trace.direction import Direction, NaturalGradient
from isopath.trace.state import Ready, State
from isopath.trace.status import Status, sentence

WATCH = 10  # accepted steps between two looks at the objective on a fixed batch
FLAT = 1e-4  # cosine between tangent and gradient under which nothing is left to follow


@dataclass(frozen=True)
class Tracer:
    """A trace as a pure function from one state to the next.

    The parts are strategies: `direction` says where to go, `controller` how far, `corrector` how to come back. The
    tracer knows neither what the objective is nor how drift is measured.

    Args:
        network: the network that moves.
        kept: what must stay, bound to the start.
        objective: what is wanted.
        tolerance: the largest drift of an accepted waypoint.
        max_steps: accepted steps at most.
        max_evaluations: gradient evaluations at most; `None` for no bound.
        seed: of the objective's batches.
    """

    network: Network
    kept: KeptAll
    objective: Objective
    tolerance: float = 0.01
    max_steps: int = 200
    max_evaluations: float | None = None
    seed: int = 0
    direction: Direction = field(default_factory=NaturalGradient)
    corrector: GaussNewton | None = field(default_factory=GaussNewton)
    controller: Backtracking = field(default_factory=Backtracking)

    @classmethod
    def of(
        cls,
        network: Network,
        keep: Reference | References | KeptAll | None,
        objective: Objective,
        seed: int = 0,
        **settings: object,
    ) -> Tracer:
        """Binds a reference to the network's own weights and checks the settings.

        Raises:
            ValueError: the tolerance is not positive, or a count is.
            TypeError: `keep` is no reference.
        """
        tolerance, max_steps = settings.get("tolerance", 0.01), settings.get("max_steps", 200)
        if not tolerance > 0:  # type: ignore[operator]
            raise ValueError(f"tolerance must be > 0, got {tolerance}; 0.01 keeps about 99 % of predictions")
        if not max_steps >= 1:  # type: ignore[operator]
            raise ValueError(f"max_steps must be >= 1, got {max_steps}")
        return cls(network, bind(keep, network, seed), as_objective(objective), seed=seed, **settings)  # type: ignore[arg-type]

    def start(self) -> State:
        """The state before the first attempt."""
        theta = self.network.start.clone()
        parts = self.kept.drift(theta)
        length = self.controller.first * float(theta.norm())
        state = State(theta, parts=parts, next_length=length, network=self.network)
        if parts.judged > self.tolerance:
            raise ValueError(
                f"the start already drifts by {parts.judged:.3g} from the outputs given, more than the tolerance "
                f"{self.tolerance:g}; raise the tolerance or keep the model's own outputs"
            )
        return replace(state, evaluations=self.network.evaluations)

    def iterate(self, state: State | None = None) -> Iterator[State]:
        """States from the start, or from a given one, to the end; the first is the start itself."""
        state = self.start() if state is None else state
        yield state
        while state.status == "running":
            state = self.step(state)
            yield state

    def step(self, state: State) -> State:
        """One attempt. Pure: the same state gives the same next one."""
        self.network.evaluations = state.evaluations
        state = self._prepared(state)
        if state.status == "running":
            state = self._attempt(state)
        if state.status == "running":
            state = self._stopped(state)
        if state.status != "running" and state.support is None:
            state = self._landed_at_last(state)
        return replace(state, evaluations=self.network.evaluations)

    # --- preparing a step -------------------------------------------------------------------------------------------

    def _prepared(self, state: State) -> State:
        if state.ready is not None:
            return state
        frame = state.frame or self.direction.frame(self.network, state.theta, self.kept.batches)
        objective = self.objective.freeze(state.step, self.seed)
        before, gradient = self._gradient(objective, state.theta)
        if state.support is not None:
            gradient *= state.support
        cotangent = self.direction.averaged(gradient, state.momentum)
        tangent = self._tangent(cotangent, frame, state.support)
        slope = float(torch.dot(gradient, tangent))
        if slope >= 0 and cotangent is not gradient:  # the past points uphill by now: forget it
            cotangent = gradient
            tangent = self._tangent(cotangent, frame, state.support)
            slope = float(torch.dot(gradient, tangent))
        state = replace(state, frame=frame, damping=frame.damping)
        norms = float(gradient.norm()) * float(tangent.norm())
        if -slope <= FLAT * norms:
            return self._ended(state, "stationary", "flat")
        longest = self.controller.longest(float(frame.metric.norm(tangent)), self.tolerance)
        keep = cotangent if self.direction.momentum else None
        return replace(state, ready=Ready(objective, before, slope, keep, tangent, float(tangent.norm()), longest))

    def _gradient(self, objective: Objective, theta: Tensor) -> tuple[float, Tensor]:
        point = theta.detach().requires_grad_(True)
        value = objective(self.network, point)
        check_scalar(value)
        number = float(value.detach())
        if not math.isfinite(number):
            raise ValueError(f"the objective is {number} at the current point; check its data and loss")
        if not value.requires_grad:
            return number, torch.zeros_like(theta)
        (gradient,) = torch.autograd.grad(value, point)
        if self.direction.penalty:
            gradient = gradient + self.direction.penalty * self.kept.gradient(theta)
        return number, gradient

    def _tangent(self, cotangent: Tensor, frame: object, support: Tensor | None) -> Tensor:
        tangent = self.direction.tangent(cotangent, frame)  # type: ignore[arg-type]
        return tangent if support is None else tangent.mul_(support)

    # --- one attempt ------------------------------------------------------------------------------------------------

    def _attempt(self, state: State) -> State:
        ready = state.ready
        assert ready is not None and state.frame is not None
        # lengths are distances in weight space; h is what multiplies the tangent
        h = min(state.next_length / ready.tangent_norm, ready.longest)
        predictor = torch.add(state.theta, ready.tangent, alpha=h)
        after = self._value(ready.objective, predictor)
        state = replace(
            state,
            attempt=state.attempt + 1,
            objective_before=ready.before,
            objective=after,
            step_length=h * ready.tangent_norm,
            tried=None,
        )
        if not self.controller.descends(ready.before, after, ready.slope, h):
            return self._rejected(state, "objective")
        drift, correction, corrected = self.kept.drift(predictor), state.correction, False
        if self.corrector is not None and self.kept.parts:
            found = self.corrector(
                self.kept, state.frame, predictor, drift, self.tolerance, correction, state.support
            )
            predictor, drift, correction, corrected = found.theta, found.drift, found.length, found.applied
        state = replace(state, tried=drift, correction=correction)
        if not drift.judged <= self.tolerance:
            return self._rejected(state, "drift")
        return self._accepted(state, predictor, drift, corrected)

    def _value(self, objective: Objective, theta: Tensor) -> float:
        with torch.no_grad():
            return float(objective(self.network, theta))

    def _rejected(self, state: State, why: Verdict) -> State:
        return replace(
            state,
            accepted=False,
            why=why,
            rejected=state.rejected + 1,
            next_length=self.controller.next_length(state.step_length, why),
        )

    def _accepted(self, state: State, theta: Tensor, drift: Drift, corrected: bool) -> State:
        ready, step = state.ready, state.step + 1
        assert ready is not None
        state = replace(
            state,
            theta=theta,
            momentum=ready.cotangent,
            accepted=True,
            why="accepted",
            step=step,
            parts=drift,
            corrected=state.corrected + 1 if corrected else 0,
            rejected=0,
            length=state.length + float((theta - state.theta).norm()),
            next_length=self.controller.next_length(state.step_length, "accepted"),
            frame=None if step % self.direction.refresh == 0 else state.frame,
            ready=None,
        )
        if step % WATCH == 0:
            value = self._value(self.objective.freeze(0, self.seed + 1), theta)
            state = replace(state, watched=(*state.watched, value)[-3:])
        return self._tried_landing(state)

    # --- landing on the objective's exact set -----------------------------------------------------------------------

    def _tried_landing(self, state: State) -> State:
        """Tries to land after 1, 2, 4, 8 and then every ten accepted steps."""
        due = state.step % 10 == 0 or state.step in (1, 2, 4, 8)
        return self._landed(state, corrections=2) if due and state.support is None else state

    def _landed(self, state: State, corrections: int) -> State:
        """The state on the exact set, its other coordinates frozen, if that is within the tolerance."""
        projected = self.objective.project(self.network, state.theta)
        if projected is None:
            return state
        support = self.objective.support(self.network, state.theta)
        drift, correction = self.kept.drift(projected), state.correction
        if self.kept.parts and self.corrector is not None and drift.judged > self.tolerance:
            frame = state.frame or self.direction.frame(self.network, projected, self.kept.batches)
            corrector = replace(self.corrector, iterations=corrections)
            found = corrector(self.kept, frame, projected, drift, self.tolerance, correction, support)
            projected, drift, correction = found.theta, found.drift, found.length
        if not drift.judged <= self.tolerance:
            return state
        return replace(
            state,
            theta=projected,
            parts=drift,
            tried=drift,
            momentum=None if state.momentum is None or support is None else state.momentum * support,
            support=torch.ones_like(projected, dtype=torch.bool) if support is None else support,
            correction=correction,
            length=state.length + float((projected - state.theta).norm()),
            frame=None,
        )

    def _landed_at_last(self, state: State) -> State:
        """A trace whose objective has a target set ends on it, or says that it does not."""
        landed = self._landed(state, corrections=10)
        if landed is not state:
            return landed
        if self.objective.project(self.network, state.theta) is None:
            return state
        achieved = f"{sparsity(self.network.space, state.theta):.1%} of the weights are zero"
        return self._ended(state, "target_not_reached", "target", achieved=achieved)

    # --- stopping ---------------------------------------------------------------------------------------------------

    def _stopped(self, state: State) -> State:
        if not state.accepted:
            return self._stuck(state)
        if self.objective.reached(self.network, state.theta):
            return self._ended(state, "converged", "converged")
        watched = state.watched
        if state.corrected >= 2 * WATCH and len(watched) == 3 and state.step % WATCH == 0:
            if watched[2] >= watched[1] >= watched[0]:
                return self._ended(state, "stationary", "undone")
        if state.step >= self.max_steps:
            return self._ended(state, "budget_spent", "steps", steps=state.step)
        return self._checked_budget(state)

    def _checked_budget(self, state: State) -> State:
        if self.max_evaluations is not None and self.network.evaluations >= self.max_evaluations:
            return self._ended(state, "budget_spent", "evaluations", evaluations=self.max_evaluations)
        return state

    def _stuck(self, state: State) -> State:
        smallest = self.controller.smallest * max(float(state.theta.norm()), 1e-30)
        if state.rejected < self.controller.patience and state.step_length > smallest:
            return self._checked_budget(state)
        if state.why == "drift":
            return self._ended(
                state, "step_too_small", "drift", length=state.step_length, tolerance=self.tolerance
            )
        return self._ended(state, "stationary", "objective")

    def _ended(self, state: State, status: Status, key: str, **values: object) -> State:
        reason = sentence(key, **values)
        if not self.kept.parts:
            reason += sentence("nothing")
        elif not self.kept.split:
            reason += sentence("unsplit")
        return replace(state, status=status, reason=reason)


def bind(keep: Reference | References | KeptAll | None, network: Network, seed: int) -> KeptAll:
    """What is kept, bound to the network's own weights.

    Raises:
        TypeError: `keep` is neither a reference, a sum of them, nor `None`.
    """
    if keep is None:
        return KeptAll()
    if isinstance(keep, KeptAll):
        return keep
    if not isinstance(keep, (Reference, References)):
        raise TypeError(f"keep must be a Reference, a sum of them, or None, got {type(keep).__name__}")
    bound = keep.bind(network, network.start, seed)
    return KeptAll((bound,)) if isinstance(bound, Kept) else bound

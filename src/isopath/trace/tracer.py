"""The loop: predictor, judge, corrector, judge; accepted and rejected attempts alike."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from isopath.arguments import check_count, check_number
from isopath.geometry.reference import Drift, Kept, KeptAll, Reference, References
from isopath.geometry.restricted import Restricted
from isopath.network import Network
from isopath.objectives import Objective, as_objective, sparsity
from isopath.objectives.objective import check_scalar
from isopath.trace.controller import Backtracking, Verdict
from isopath.trace.corrector import GaussNewton
from isopath.trace.direction import Direction, Frame, NaturalGradient
from isopath.trace.state import Moved, Ready, State, Watched
from isopath.trace.status import Status, sentence

WATCH = 10  # accepted steps between two attempts to land on the objective's exact set
BINS = 20  # of the budget, over which the objective's batch values are averaged
STILL = 4  # bins over which the objective's mean must not have fallen for a trace to stop
ENOUGH = 20  # batches at least in each of the means compared
SETTLED = 0.05  # share of its first value at which an objective that no longer falls counts as converged
LANDING = 0.5  # share of the budget before which a trace does not land on its objective's exact set
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
            ValueError, TypeError: the tolerance or a count is not positive, or `keep` is no reference.
        """
        tolerance, max_steps = settings.get("tolerance", 0.01), settings.get("max_steps", 200)
        budget = settings.get("max_evaluations")
        check_count(max_steps, "max_steps")
        check_number(tolerance, "tolerance")
        if budget is not None and not budget > 0:  # type: ignore[operator]
            raise ValueError(f"max_evaluations must be > 0, got {budget}; None sets no bound")
        if not tolerance > 0:  # type: ignore[operator]
            raise ValueError(f"tolerance must be > 0, got {tolerance}; 0.01 keeps about 99 % of predictions")
        return cls(network, bind(keep, network, seed), as_objective(objective), seed=seed, **settings)  # type: ignore[arg-type]

    def start(self) -> State:
        """The state before the first attempt."""
        theta = self.network.start.clone()
        parts = self.kept.drift(theta)
        state = State(theta, parts=parts, network=self.network)
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
        state = self._attempt(state)
        if state.status == "running":
            state = self._stopped(state)
        if state.status != "running" and state.support is None:
            state = self._landed_at_last(state)
        return replace(state, evaluations=self.network.evaluations)

    # --- one predictor step -----------------------------------------------------------------------------------------

    def _framed(self, state: State) -> State:
        if state.frame is not None:
            return state
        frame = self.direction.frame(self.network, state.theta, self.kept.batches, self.kept.curvatures)
        if state.support is not None:
            frame = replace(frame, metric=Restricted(frame.metric, state.support))
        return replace(state, frame=frame, damping=frame.damping)

    def _prepared(self, state: State, theta: Tensor, step: int, past: Tensor | None) -> Ready:
        """Batch, gradient and tangent at a point."""
        frame, support = state.frame, state.support
        assert frame is not None
        objective = self.objective.freeze(step, self.seed)
        before, gradient = self._gradient(objective, theta)
        if support is not None:
            gradient *= support
        cotangent = self.direction.averaged(gradient, past)
        tangent = self._tangent(cotangent, frame, support)
        slope = float(torch.dot(gradient, tangent))
        if slope >= 0 and cotangent is not gradient:  # the past points uphill by now: forget it
            cotangent, tangent = gradient, self._tangent(gradient, frame, support)
            slope = float(torch.dot(gradient, tangent))
        norm = float(tangent.norm())
        flat = -slope <= FLAT * float(gradient.norm()) * norm
        longest = self.controller.longest(float(frame.metric.norm(tangent)), self.tolerance)
        keep = cotangent if self.direction.momentum else None
        return Ready(objective, before, slope, keep, tangent, norm, longest, flat)

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

    def _tangent(self, cotangent: Tensor, frame: Frame, support: Tensor | None) -> Tensor:
        tangent = self.direction.tangent(cotangent, frame)
        return tangent if support is None else tangent.mul_(support)

    def _moved(self, ready: Ready, theta: Tensor, rate: float) -> Moved:
        """The longest of a few steps at which the objective descends, on the batch of the gradient."""
        after = math.nan
        for tried in range(self.controller.tries):
            # The multiple of the tangent is remembered, not the distance: steps shrink as the gradient does
            rate = min(rate, ready.longest)
            trial = torch.add(theta, ready.tangent, alpha=rate)
            after = self._value(ready.objective, trial)
            if self.controller.descends(ready.before, after, ready.slope, rate):
                return Moved(trial, after, rate, True, tried > 0)
            rate = self.controller.next_rate(rate, "objective")
        return Moved(theta, after, rate, False, True)

    # --- one attempt ------------------------------------------------------------------------------------------------

    def _attempt(self, state: State) -> State:
        """Up to `stride` predictor steps, then one judgement of the drift, after correction."""
        state = self._framed(state)
        ready = state.ready or self._prepared(state, state.theta, state.step, state.momentum)
        if ready.flat:
            return self._ended(state, "stationary", "flat")
        theta, past, taken = state.theta, state.momentum, 0
        rate = state.rate or self.controller.first * float(theta.norm()) / ready.norm
        typical, progress, refused = state.typical, self._progress(state.step), state.refused
        stride, watched = min(state.stride, self.max_steps - state.step), state.watched
        # a longer attempt that fails prepares its first step again: less to hold
        first = ready if stride == 1 else None
        state = replace(state, ready=None)
        while True:
            moved = self._moved(ready, theta, min(rate, self.controller.cap(typical, progress)))
            refused = refused or moved.refused
            if not moved.descended:
                break
            theta, past, rate = moved.theta, ready.cotangent, self.controller.next_rate(moved.rate, "accepted", refused)
            typical = self.controller.next_typical(typical, moved.rate, progress)
            taken += 1
            watched = _watched(watched, progress, ready.before)
            progress = self._progress(state.step + taken)
            if taken == stride:
                break
            ready = replace(ready, tangent=theta)  # drop the tangent before the next gradient
            ready = self._prepared(state, theta, state.step + taken, past)
            if ready.flat:
                break
        state = replace(
            state,
            attempt=state.attempt + 1,
            objective_before=ready.before,
            objective=moved.objective,
            step_length=moved.rate * ready.norm,
            rate=moved.rate,
            typical=typical,
            refused=refused,
            initial=ready.before if math.isnan(state.initial) else state.initial,
            tried=None,
            ready=first if first is not None or taken else ready,
        )
        if not taken:
            if past is not None:  # a momentum that leads nowhere: the gradient alone is next, at the rate of before
                state = replace(state, momentum=None, ready=None, rate=rate)
            return self._rejected(state, "objective")
        state = self._judged(state, theta, past, rate, taken)
        return replace(state, watched=watched) if state.accepted else state

    def _judged(self, state: State, theta: Tensor, past: Tensor | None, rate: float, taken: int) -> State:
        predicted = drift = self.kept.drift(theta)
        correction, corrected = state.correction, False
        if self.corrector is not None and self.kept.parts:
            assert state.frame is not None
            found = self.corrector(self.kept, state.frame, theta, drift, self.tolerance, correction, state.support)
            theta, drift, correction, corrected = found.theta, found.drift, found.length, found.applied
        state = replace(state, tried=drift, correction=correction)
        if not drift.judged <= self.tolerance:
            shorter = self.controller.next_rate(state.rate, "drift") if taken == 1 else state.rate
            return replace(self._rejected(state, "drift"), rate=shorter, stride=max(1, taken // 2), momentum=None)
        stride = self.controller.next_stride(state.stride, predicted.judged / self.tolerance)
        state = replace(state, momentum=past, stride=stride, rate=rate)
        return self._accepted(state, theta, drift, corrected, taken)

    def _value(self, objective: Objective, theta: Tensor) -> float:
        with torch.no_grad():
            return float(objective(self.network, theta))

    def _rejected(self, state: State, why: Verdict) -> State:
        return replace(state, accepted=False, why=why, rejected=state.rejected + 1, refused=True)

    def _accepted(self, state: State, theta: Tensor, drift: Drift, corrected: bool, taken: int) -> State:
        step, age = state.step + taken, state.age + 1
        fresh = age >= self.direction.refresh
        state = replace(
            state,
            theta=theta,
            accepted=True,
            why="accepted",
            step=step,
            parts=drift,
            free=state.free if corrected else self._progress(step),
            rejected=0,
            length=state.length + float((theta - state.theta).norm()),
            age=0 if fresh else age,
            frame=None if fresh else state.frame,
            ready=None,
        )
        return self._tried_landing(state) if step // WATCH > (step - taken) // WATCH else state

    # --- landing on the objective's exact set -----------------------------------------------------------------------

    def _tried_landing(self, state: State) -> State:
        """Tries to land now and then, once half the budget is spent: by then the objective has come near its set."""
        due = state.support is None and self._progress(state.step) >= LANDING
        return self._landed(state, corrections=2) if due else state

    def _landed(self, state: State, corrections: int) -> State:
        """The state on the exact set, its other coordinates frozen, if that is within the tolerance."""
        projected = self.objective.project(self.network, state.theta)
        if projected is None:
            return state
        support = self.objective.support(self.network, state.theta)
        drift, correction = self.kept.drift(projected), state.correction
        if self.kept.parts and self.corrector is not None and drift.judged > self.tolerance:
            kept = self.kept.batches, self.kept.curvatures
            frame = state.frame or self.direction.frame(self.network, projected, *kept)
            if support is not None:
                frame = replace(frame, metric=Restricted(frame.metric, support))
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
            ready=None,
            age=0,
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
        still = self._still(state)
        if still is not None:
            share = still / state.initial if state.initial > 0 else 1.0
            if 0 <= share <= SETTLED:
                return self._ended(state, "converged", "settled", share=share)
            return self._ended(state, "stationary", "undone")
        if state.step >= self.max_steps:
            return self._ended(state, "budget_spent", "steps", steps=state.step)
        return self._checked_budget(state)

    def _still(self, state: State) -> float | None:
        """The objective's mean of late, where it no longer falls and the corrector acts on every attempt.

        Batches are noisy, so whole fifths of the budget are compared, each the mean of every batch that was drawn.
        """
        *full, current = state.watched or ((0, 0.0, 0),)
        if len(full) < 2 * STILL or self._progress(state.step) - state.free < STILL / BINS:
            return None
        if full[-1][0] != current[0] - 1 or full[-2 * STILL][0] != current[0] - 2 * STILL:
            return None  # long attempts skip bins
        parts = full[-2 * STILL : -STILL], full[-STILL:]
        if min(sum(count for _, _, count in part) for part in parts) < ENOUGH:
            return None
        before, late = (sum(total for _, total, _ in part) / sum(count for _, _, count in part) for part in parts)
        return late if late >= before else None

    def _progress(self, step: int) -> float:
        """The share of the budget that is spent."""
        spent = self.network.evaluations / self.max_evaluations if self.max_evaluations else 0.0
        return max(spent, step / self.max_steps)

    def _checked_budget(self, state: State) -> State:
        if self.max_evaluations is not None and self.network.evaluations >= self.max_evaluations:
            return self._ended(state, "budget_spent", "evaluations", evaluations=self.max_evaluations)
        return state

    def _stuck(self, state: State) -> State:
        smallest = self.controller.smallest * max(float(state.theta.norm()), 1e-30)
        if state.rejected < self.controller.patience and state.step_length > smallest:
            return self._checked_budget(state)
        if state.why == "drift":
            return self._ended(state, "step_too_small", "drift", length=state.step_length, tolerance=self.tolerance)
        return self._ended(state, "stationary", "objective")

    def _ended(self, state: State, status: Status, key: str, **values: object) -> State:
        reason = sentence(key, **values)
        if not self.kept.parts:
            reason += sentence("nothing")
        elif self.kept.kind == "estimated":
            reason += sentence("estimated")
        elif not self.kept.split:
            reason += sentence("unsplit")
        return replace(state, status=status, reason=reason)


def _watched(watched: Watched, progress: float, value: float) -> Watched:
    """The sums with one more value, in the bin of the budget that it falls in."""
    index = int(progress * BINS)
    if watched and watched[-1][0] == index:
        *past, (_, total, count) = watched
        return (*past, (index, total + value, count + 1))
    return (*watched, (index, value, 1))[-2 * STILL - 1 :]


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

"""Corrected in every step: a multiplier holds the drift while the objective goes down."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from isopath.arguments import check_count, check_number
from isopath.trace.recovery import Moments, Rows
from isopath.trace.state import State
from isopath.trace.tracer import Tracer

LARGEST = 1e3  # times its first value a multiplier is at most, and its inverse the least: it comes back from there
LOWEST = 0.01  # of the rate, at the end of the budget


@dataclass(frozen=True)
class Multiplier:
    """Correction along the way: each step lowers L + λD on small batches of both, and λ follows the drift.

    Gauss-Newton goes over the reference after every step or few. Where a step is one noisy batch, as of attacked
    inputs, it takes most of the passes, for drift that the next batch makes again. Here a step reads as many rows of
    the reference as of the objective, and the drift is judged every `steps` of them. At each judgement, with
    e = D/τ - aim, ν ← ν exp(gain e), an ascent in the log of a multiplier, and λ = ν exp(damping e): without the
    second factor D swings about where it should be held (Platt & Barr 1987, Constrained differential optimization).
    Where D breaks the tolerance τ, the steps since the last judgement are taken back and ν grows by half. Steps are
    Adam's (Kingma & Ba 2015, arXiv 1412.6980): unlike a trace with another corrector, this one has a learning rate.

    Args:
        steps: between two judgements.
        batch_size: rows of each reference in a step, none of them a row that judges.
        rate: of the first steps; it falls to zero in a straight line over the budget, and is halved for a while
            wherever steps were taken back.
        warmup: steps over which the rate rises.
        betas: of the running means of the gradient and of its square.
        aim: share of the tolerance at which λ holds the drift; the rest is room for noise.
        gain: how fast ν follows.
        damping: how strongly λ answers at once.
        first: ν to begin with, in units of the objective for one of the divergence.
    """

    steps: int = 20
    batch_size: int = 128
    rate: float = 3e-3
    warmup: int = 20
    betas: tuple[float, float] = (0.9, 0.999)
    aim: float = 0.8
    gain: float = 0.2
    damping: float = 2.0
    first: float = 1.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            check_count(getattr(self, name), name)
        for name in ("rate", "warmup", "aim", "gain", "damping", "first"):
            check_number(getattr(self, name), name)
        if not 0 < self.aim < 1:
            raise ValueError(f"aim must lie in (0, 1), a share of the tolerance, got {self.aim}")
        if not (min(self.rate, self.gain, self.first) > 0 and min(self.damping, self.warmup) >= 0):
            raise ValueError(
                f"rate, gain and first must be > 0, damping and warmup >= 0, got {self.rate}, {self.gain}, "
                f"{self.first}, {self.damping} and {self.warmup}"
            )

    def error(self, drift: float, tolerance: float) -> float:
        """e, by how much of the tolerance the drift is off its aim."""
        return drift / tolerance - self.aim


@dataclass(frozen=True)
class Lagrangian(Tracer):
    """A trace along min over θ, max over λ >= 0 of L(θ) + λ(D(θ) - τ), by stochastic steps.

    Every accepted attempt ends within the tolerance. In its states `correction` is ν over its first value, `rate` the
    share of the scheduled rate, `age` the number of steps that the running means have seen, `objective_before` and
    `objective` the means over the batches of the attempt's first and second half.

    Args:
        multiplier: how λ begins and follows, and how long the steps are.
    """

    multiplier: Multiplier = field(default_factory=Multiplier)
    _rows: Rows | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rows", Rows(self.network, self.kept, self.seed) if self.kept.parts else None)

    def _attempt(self, state: State) -> State:
        """Some steps, then one judgement of the drift."""
        count = min(self.multiplier.steps, self.max_steps - state.step)
        theta, moments, values = self._stepped(state, count)
        drift, half = self.kept.drift(theta), max(1, count // 2)
        state = replace(
            state,
            attempt=state.attempt + 1,
            objective_before=sum(values[:half]) / half,
            objective=sum(values[-half:]) / half,
            step_length=float((theta - state.theta).norm()),
            rate=state.rate or 1.0,
            tried=drift,
        )
        if not drift.judged <= self.tolerance:
            state = self._rejected(state, "drift")
            return replace(state, correction=_bounded(1.5 * state.correction), rate=state.rate / 2)
        follows = math.exp(self.multiplier.gain * self.multiplier.error(drift.judged, self.tolerance))
        state = replace(
            state,
            correction=_bounded(state.correction * follows) if self._rows else state.correction,
            rate=min(1.0, 1.1 * state.rate),
            second=moments.second,
            momentum=moments.first,
        )
        return replace(self._accepted(state, theta, drift, False, count), age=moments.count)

    def _stepped(self, state: State, count: int) -> tuple[Tensor, Moments, list[float]]:
        """The point after some steps of Adam on the Lagrangian, its running means, and the objective's batch values."""
        theta, values = state.theta.clone(), []
        answer = math.exp(self.multiplier.damping * self.multiplier.error(state.drift, self.tolerance))
        weight = self.multiplier.first * state.correction * answer
        optimiser = torch.optim.Adam([theta], betas=self.multiplier.betas)
        if state.momentum is not None and state.second is not None:
            means = {"exp_avg": state.momentum.clone(), "exp_avg_sq": state.second.clone()}
            optimiser.state[theta] = {"step": torch.tensor(float(state.age)), **means}
        for k in range(count):
            index = state.attempt * self.multiplier.steps + k  # steps taken back are not tried again on the same rows
            value, gradient = self._gradient(self.objective.freeze(index, self.seed), theta)
            values.append(value)
            if self._rows is not None:
                gradient = gradient.add(self._rows.gradient(theta, index, self.multiplier.batch_size), alpha=weight)
            theta.grad = gradient if state.support is None else gradient * state.support
            warm = min(1.0, (state.age + k + 1) / max(1, self.multiplier.warmup))
            left = max(LOWEST, 1 - self._progress(state.step + k))
            optimiser.param_groups[0]["lr"] = self.multiplier.rate * (state.rate or 1.0) * warm * left
            optimiser.step()
            if state.support is not None:
                theta.mul_(state.support)
        means = optimiser.state[theta]
        return theta.detach(), Moments(means["exp_avg"], means["exp_avg_sq"], int(means["step"])), values

    def _still(self, state: State) -> float | None:
        """Never: the rate falls over the budget, so an objective that stands still may yet go down."""
        return None


def _bounded(correction: float) -> float:
    return min(LARGEST, max(1 / LARGEST, correction))

"""For your own training loop: an optimiser whose steps respect what is kept."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from isopath.arguments import check_kind, check_module
from isopath.geometry.curvature import Curvature
from isopath.geometry.kronecker import Kronecker
from isopath.geometry.memory import Memory
from isopath.geometry.reference import Reference, References
from isopath.network import Network
from isopath.optim.pull import Curved, Rows, pulls
from isopath.space import Trainable

DAMPING = 1.0  # of the metric, in its mean eigenvalues


class Invariant(Optimizer):
    """A base optimiser's step Δ, made to respect a metric: Δ ← (I + G/μ)⁻¹ Δ.

    What is kept also pulls back. Before the base optimiser steps, λ∇D joins the gradient of the loss, with D the drift
    since each task was left: ½(θ - θ_t)ᵀG_t(θ - θ_t) where its curvature is kept, the drift of a batch of its kept
    rows, or the sum of both. For plain gradient descent that is the damped natural gradient of the loss and the drift
    together (natural continual learning, Kao et al. 2021, arXiv 2106.08085, with the memory's own metric).

    **Its promise is weaker than a trace's.** The drift is measured every `check_every` steps (and whenever you call
    `check`); if it is above the tolerance the weights and the base optimiser's state go back to where they were at the
    last check, and λ doubles. Between checks nothing is promised.

    Clip gradients, accumulate them, schedule the rate as you would for the base optimiser: both share their parameter
    groups, those that there are when this one is made. For mixed precision keep the parameters in float32, as
    `torch.autocast` does: the drift is then measured in float32.

    Args:
        base: the optimiser to steer; it must hold the model's trainable parameters.
        model: the network in training.
        keep: a `Memory`, or a `Reference` (or a sum of them) for the model as it is now.
        tolerance: the largest drift of any task; `None` for no limit.
        strength: λ, of each remembered task against the loss. At 1 each counts as the mean log-likelihood of its data
            does (for softmax outputs, whatever the divergence).
        damping: μ in units of the metric's mean eigenvalue; smaller holds tighter.
        check_every: steps between two checks of the drift.
        refresh: steps between two builds of the metric, where it comes from kept rows.
        renew: steps between two products with kept curvature, G_t(θ - θ_t), whose cost grows with the number of tasks.
            A step changes them little, unless the strength or the rate is very large.
        steer_every: steps of the base optimiser that are steered together: (I + G/μ)⁻¹ of their sum. On a small network
            a solve costs as much as a step does. In between the weights are where the base optimiser puts them: call
            `check` before you read them.
        batch_size: kept rows per step.
        trainable: as for `trace`; all parameters that require a gradient by default.
        seed: of the batches.

    Raises:
        ValueError: the memory is of another network, the base optimiser holds other parameters, or it needs a closure
            (LBFGS).
    """

    def __init__(
        self, base: Optimizer, model: nn.Module, keep: Memory | Reference | References, tolerance: float | None = 0.01,
        strength: float = 1.0, damping: float = DAMPING, check_every: int = 100, refresh: int = 50,
        renew: int = 1, steer_every: int = 1, batch_size: int = 64, trainable: Trainable = None, seed: int = 0,
    ) -> None:  # fmt: skip
        check_kind(base, Optimizer, "base", "the arguments are Invariant(base, model, keep)")
        check_module(model, "model", "the arguments are Invariant(base, model, keep)")
        check_kind(keep, (Memory, Reference, References), "keep", "of inputs make an ip.Reference")
        if tolerance is not None and not tolerance > 0:
            raise ValueError(f"tolerance must be > 0, got {tolerance}; None sets no limit")
        dtypes = {p.dtype for p in model.parameters() if p.requires_grad}
        if dtypes & {torch.float16, torch.bfloat16}:
            raise ValueError("the parameters are in 16 bits, in which a metric cannot be solved; keep them in float32 "
                             "and run the model under torch.autocast")  # fmt: skip
        if strength < 0 or not damping > 0 or min(check_every, refresh, renew, steer_every) < 1:
            raise ValueError(
                "strength must be >= 0, damping > 0, check_every, refresh, renew and steer_every >= 1, got "
                f"{strength}, {damping}, {check_every}, {refresh}, {renew} and {steer_every}"
            )
        if inspect.signature(base.step).parameters["closure"].default is inspect.Parameter.empty:
            raise ValueError(
                f"{type(base).__name__} evaluates the loss inside its step, at points that nothing has steered; choose "
                "a base optimiser whose step takes no closure"
            )
        self.base, self.network = base, Network(model, trainable)
        named = dict(model.named_parameters())
        self._parameters = [named[name] for name in self.network.space.names]
        _same_parameters(base, self._parameters)
        super().__init__(base.param_groups, base.defaults)
        self.state = base.state
        self.tolerance, self.strength, self.damping = tolerance, strength, damping
        self.check_every, self.refresh, self.renew, self.batch_size = check_every, refresh, renew, batch_size
        self.steer_every, self.seed = steer_every, seed
        self.steps = self.rollbacks = 0
        self._model = model
        self._curved, self._rows, self._told = pulls(keep, self.network, seed)
        self._metric: Kronecker | None = None
        self._damping = 1.0
        self._scratch: dict[int, Tensor] = {}
        self._held: Tensor | None = None  # the pull of kept curvature, as it was last computed
        self._steered: Tensor | None = None  # where the last steering left the weights, if they have moved since
        self._unsteered = 0  # steps since then
        self._build()
        self._anchor = self._saved()

    # --- a step -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of the base optimiser, steered.

        Args:
            closure: evaluates the loss and its gradient once, before the step, as Lightning has it.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self._curved and self.steps and self.steps % self.refresh == 0:
            self._build()
        if self._metric is None:
            self.base.step()
        else:
            here = self._point(self._buffer(3 if self._unsteered else 0))
            self._steered = self._steered if self._unsteered else here
            self._add(self._pull(here))
            self.base.step()
            self._unsteered += 1
            if self._unsteered >= self.steer_every:
                self._steer()
        self.steps += 1
        if self.steps % self.check_every == 0:
            self.check()
        return loss

    def _steer(self) -> None:
        """Steers what the base optimiser has moved since the last time."""
        if self._metric is not None and self._steered is not None:
            before, step = self._steered, self._point(self._buffer(1)).sub_(self._steered)
            self._write(before.add_(self._metric.solve(step, self._damping, self._buffer(2)), alpha=self._damping))
        self._steered, self._unsteered = None, 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the base optimiser's."""
        self.base.zero_grad(set_to_none)

    def _pull(self, theta: Tensor) -> Tensor:
        """λ Σ ∇D_t, in the units of the loss; of a task that has both, by its rows and by its curvature."""
        if self._held is None or self.steps % self.renew == 0:
            self._held = self._summed(self._curved, theta)
        return self._summed(self._rows, theta).add_(self._held) if self._rows else self._held

    def _summed(self, pulls: Sequence[Rows | Curved], theta: Tensor) -> Tensor:
        total = torch.zeros_like(theta)
        for pull in pulls:
            if isinstance(pull, Curved):
                found = pull.estimate.pull(theta, self._buffer(1), self._buffer(2))
            else:
                found = pull.gradient(theta, self.steps, self.batch_size)
            total.add_(found, alpha=self.strength * pull.weight)
        return total

    def _judges(self) -> list[Rows | Curved]:
        """What speaks for each task: its rows, or else its curvature."""
        return [*self._told, *(pull for pull in self._curved if not pull.measured)]

    def _build(self, buffers: dict[str, Tensor] | None = None) -> None:
        """The metric of everything that is kept, and its damping: curvature that is kept, or else that of the rows."""
        buffers = self._buffers() if buffers is None else buffers
        self._source = self._point(), buffers, self.strength
        self._metric, self._damping = None, 1.0
        if not self.strength or not (self._curved or self._rows):
            return
        self._synced(buffers)
        terms = [(pull.weight, pull.estimate.curvature) for pull in self._curved]
        if not terms:
            theta = self._point()
            terms = [(pull.weight, Curvature.of(self.network, theta, pull.kept.batches)) for pull in self._rows]
        merged = Curvature.merged([term for _, term in terms], [self.strength * weight for weight, _ in terms])
        metric = merged.metric(self.network.space)
        mean = metric.trace() / metric.dimension
        self._metric, self._damping = metric, self.damping * mean if mean > 0 else 1.0

    def _synced(self, buffers: dict[str, Tensor]) -> None:
        """Takes over the model's running statistics, which training moves."""
        own = dict(self.network._skeleton.named_buffers())
        for name, buffer in buffers.items():
            own[name].copy_(buffer)

    # --- the promise ------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def drift(self) -> float:
        """The largest drift of any task: measured on its kept rows, or from its curvature where no rows are kept."""
        self._synced(self._buffers())
        theta = self._point()
        found = max((pull.drift(theta) for pull in self._judges()), default=0.0)
        self._synced(self._source[1])  # steps read those of the last build, so that measuring changes nothing
        return found

    def check(self) -> float:
        """Measures the drift now; a break of the tolerance is rolled back to the last check, and λ doubles.

        Call it at the end of training. Returns the drift of the weights that stay.
        """
        self._steer()
        drift = self.drift()
        if self.tolerance is None or drift <= self.tolerance:
            self._anchor = self._saved()
            return drift
        warnings.warn(
            f"drift {drift:.4g} is above the tolerance {self.tolerance:g} after {self.steps} steps; back to the last "
            f"check, with strength {2 * self.strength:g}",
            stacklevel=2,
        )
        theta, buffers, state = self._anchor
        self._write(theta)
        for name, buffer in self._model.named_buffers():
            buffer.copy_(buffers[name])
        self._restored(_with_groups(state, self.base))
        self.rollbacks += 1
        self.strength *= 2
        self._held = None
        self._build()
        return self.drift()

    # --- points -----------------------------------------------------------------------------------------------------

    def _point(self, out: Tensor | None = None) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self._parameters], out=out)

    def _buffer(self, index: int) -> Tensor:
        """One of a few vectors of P that every step writes over: fresh memory of that size costs more than the sums."""
        if index not in self._scratch:
            self._scratch[index] = torch.empty_like(self.network.start)
        return self._scratch[index]

    @torch.no_grad()
    def _write(self, theta: Tensor) -> None:
        for parameter, value in zip(self._parameters, self.network.space.unflatten(theta).values()):
            parameter.copy_(value)

    def _add(self, pull: Tensor) -> None:
        for parameter, value in zip(self._parameters, self.network.space.unflatten(pull).values()):
            if parameter.grad is None:
                parameter.grad = value.clone()
            else:
                parameter.grad.add_(value)

    def _buffers(self) -> dict[str, Tensor]:
        return {name: buffer.detach().clone() for name, buffer in self._model.named_buffers()}

    def _saved(self) -> tuple[Tensor, dict[str, Tensor], dict[str, Any]]:
        return self._point(), self._buffers(), copy.deepcopy(self.base.state_dict())

    def _restored(self, state: dict[str, Any]) -> None:
        """Gives the base optimiser a copy of a state; its groups' dictionaries stay, which schedulers hold."""
        groups = self.base.param_groups
        self.base.load_state_dict(copy.deepcopy(state))
        for group, new in zip(groups, self.base.param_groups):
            group.update(new)
        self.base.param_groups = self.param_groups = groups
        self.state = self.base.state

    def state_dict(self) -> dict[str, Any]:  # type: ignore[override]
        """The base optimiser's state and its own."""
        own = {"steps": self.steps, "strength": self.strength, "rollbacks": self.rollbacks, "anchor": self._anchor}
        own |= {"built": self._source, "kept": [rows.outputs for rows in self._rows], "held": self._held}
        own |= {"steered": None if self._steered is None else self._steered.clone(), "unsteered": self._unsteered}
        return {**self.base.state_dict(), "invariant": own}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a saved state: load the model's weights first, and give the same memory or reference."""
        own = state_dict["invariant"]
        self._restored({key: value for key, value in state_dict.items() if key != "invariant"})
        self.steps, self.rollbacks, self._anchor = own["steps"], own["rollbacks"], own["anchor"]
        for rows, outputs in zip(self._rows, own["kept"]):
            rows.bind(outputs)
        # the metric in force was built at an earlier point, with the strength of then
        theta, buffers, self.strength = own["built"]
        now = self._point()
        self._write(theta.to(now))
        self._build(buffers)
        self._write(now)
        self.strength, self._held = own["strength"], own["held"]
        steered, self._unsteered = own["steered"], own["unsteered"]
        self._steered = None if steered is None else self._buffer(0).copy_(steered)


def _with_groups(state: dict[str, Any], base: Optimizer) -> dict[str, Any]:
    """A saved state with the rates of now: a schedule does not go back."""
    return {**state, "param_groups": base.state_dict()["param_groups"]}


def _same_parameters(base: Optimizer, parameters: Sequence[Tensor]) -> None:
    held = {id(p) for group in base.param_groups for p in group["params"]}
    missing = sum(id(p) not in held for p in parameters)
    foreign = len(held - {id(p) for p in parameters})
    if missing or foreign:
        raise ValueError(
            f"the base optimiser must hold the parameters that are trained and no others: {missing} of the model's are "
            f"missing from it and {foreign} are not the model's; build it from the same model, or use trainable="
        )

"""For your own training loop: an optimiser whose steps respect what is kept."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from isopath.arguments import check_count, check_kind, check_module, check_numbers
from isopath.geometry.curvature import Curvature
from isopath.geometry.kronecker import Kronecker
from isopath.geometry.memory import Memory
from isopath.geometry.reference import Reference, References
from isopath.network import Network
from isopath.optim.pull import Curved, Rows, pulls
from isopath.space import Trainable

DAMPING = 1.0  # of the metric, in its mean eigenvalues
STRONGEST = 1e12  # λ doubles no further


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
    `torch.autocast` does: the drift is then measured in float32. Batch norm must not follow the batches while a task is
    kept by its curvature alone, which does not see running statistics: put those layers in `eval()`.

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
        ValueError: the memory is of another network, or has no curvature of parameters that are trained; the base
            optimiser holds other parameters, or needs a closure (LBFGS). At the first step: the start already drifts
            by more than the tolerance.
    """

    def __init__(
        self, base: Optimizer, model: nn.Module, keep: Memory | Reference | References, tolerance: float | None = 0.01,
        strength: float = 1.0, damping: float = DAMPING, check_every: int = 100, refresh: int = 50,
        renew: int = 1, steer_every: int = 1, batch_size: int = 64, trainable: Trainable = None, seed: int = 0,
    ) -> None:  # fmt: skip
        check_kind(base, Optimizer, "base", "the arguments are Invariant(base, model, keep)")
        check_module(model, "model", "the arguments are Invariant(base, model, keep)")
        check_kind(keep, (Memory, Reference, References), "keep", "of inputs make an ip.Reference")
        check_numbers(tolerance=tolerance, strength=strength, damping=damping)
        for name, count in {"check_every": check_every, "refresh": refresh, "renew": renew, "steer_every": steer_every,
                            "batch_size": batch_size}.items():  # fmt: skip
            check_count(count, name)
        if tolerance is not None and not tolerance > 0:
            raise ValueError(f"tolerance must be > 0, got {tolerance}; None sets no limit")
        if not 0 <= strength < float("inf") or not damping > 0:
            raise ValueError(f"strength must be >= 0 and finite, damping > 0, got {strength} and {damping}")
        dtypes = {p.dtype for p in model.parameters() if p.requires_grad}
        if dtypes & {torch.float16, torch.bfloat16}:
            raise ValueError("the parameters are in 16 bits, in which a metric cannot be solved; keep them in float32 "
                             "and run the model under torch.autocast")  # fmt: skip
        closure = inspect.signature(base.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise ValueError(
                f"{type(base).__name__} evaluates the loss inside its step, at points that nothing has steered; choose "
                "a base optimiser whose step takes no closure"
            )
        self.base, self.network = base, Network(model, trainable)
        named = dict(model.named_parameters())
        self._parameters: list[Tensor] = [named[name] for name in self.network.space.names]
        _same_parameters(base, self._parameters, model)
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
        self._scratch: dict[int, tuple[Tensor, list[Tensor]]] = {}  # each with its views in the parameters' shapes
        self._held: Tensor | None = None  # the pull of kept curvature, as it was last computed
        self._steered: Tensor | None = None  # where the last steering left the weights, if they have moved since
        self._unsteered = 0  # steps since then
        self._build()
        self._anchor = self._saved()
        self._made = True

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused: what is kept was bound to the parameters of then.

        Raises:
            ValueError: always, once it is made.
        """
        if hasattr(self, "_made"):
            raise ValueError("what is kept was bound to the parameters that there were; add the group to a new base "
                             "optimiser and make a new Invariant of it")  # fmt: skip
        super().add_param_group(param_group)

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
        with self._exactly():
            self._step()
        return loss

    def _step(self) -> None:
        if not self.steps:
            self._begin()
        elif not self._curved and self.steps % self.refresh == 0:
            self._build()
        if self._metric is None:
            self.base.step()
        else:
            if not self._unsteered:
                self._steered = self._point(self._buffer(0))
            self._add(self._pull())
            self.base.step()
            self._unsteered += 1
            if self._unsteered >= self.steer_every:
                self._steer()
        self.steps += 1
        if self.steps % self.check_every == 0:
            self.check()

    def _begin(self) -> None:
        """What can be said of the start at the first step, when the weights have been loaded and the modes set."""
        if not torch.equal(self._anchor[0], self._point()):  # weights were loaded after this was made
            self._anchor = self._saved()
        moving = [name for name, module in self._model.named_modules() if isinstance(module, _BatchNorm)
                  and module.training and module.track_running_stats]  # fmt: skip
        if moving and any(not pull.measured for pull in self._curved):
            warnings.warn(
                f"the running statistics of {len(moving)} batch norms ({moving[0]!r}, ...) follow the batches, which "
                "curvature alone does not see: put these layers in eval(), or keep examples too",
                stacklevel=4,
            )
        drift = 0.0 if self.tolerance is None else self._drift(self._anchor[1])  # batch norm has seen a batch since
        if self.tolerance is not None and drift > self.tolerance:
            raise ValueError(
                f"the start already drifts by {drift:.3g} from what is kept, more than the tolerance "
                f"{self.tolerance:g}: every check would roll back to it; raise the tolerance (None: no limit), or "
                "start where the last task was left"
            )

    def _exactly(self) -> torch.autocast:
        """Metrics and drifts are computed in the parameters' own precision."""
        return torch.autocast(self.network.space.device.type, enabled=False)

    def _steer(self) -> None:
        """Steers what the base optimiser has moved since the last time."""
        if self._metric is not None and self._steered is not None:
            before, step = self._steered, self._point(self._buffer(1)).sub_(self._steered)
            self._write(before.add_(self._metric.solve(step, self._damping, self._buffer(2)), alpha=self._damping))
        self._steered, self._unsteered = None, 0

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the base optimiser's."""
        self.base.zero_grad(set_to_none)

    def _pull(self) -> Tensor:
        """λ Σ ∇D_t, in the units of the loss; of a task that has both, by its rows and by its curvature."""
        renewed = self._held is None or self.steps % self.renew == 0
        here = self._point(self._buffer(3)) if self._unsteered and (self._rows or renewed) else self._steered
        assert here is not None
        if renewed:
            self._held = self._summed(self._curved, here, self._buffer(4))
        assert self._held is not None
        return self._summed(self._rows, here, self._buffer(5)).add_(self._held) if self._rows else self._held

    def _summed(self, pulls: Sequence[Rows | Curved], theta: Tensor, total: Tensor) -> Tensor:
        total.zero_()
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
        return self._drift(self._buffers())

    def _drift(self, buffers: dict[str, Tensor]) -> float:
        self._synced(buffers)
        theta = self._point()
        with self._exactly():
            found = max((pull.drift(theta) for pull in self._judges()), default=0.0)
        self._synced(self._source[1])  # steps read those of the last build, so that measuring changes nothing
        return found

    def check(self) -> float:
        """Measures the drift now; a break of the tolerance is rolled back to the last check, and λ doubles.

        Call it at the end of training. Returns the drift of the weights that stay.
        """
        self._steer()
        with self._exactly():
            return self._checked(self.drift())

    def _checked(self, drift: float) -> float:
        if self.tolerance is None or drift <= self.tolerance:
            self._anchor = self._saved()
            return drift
        warnings.warn(
            f"drift {drift:.4g} is above the tolerance {self.tolerance:g} after {self.steps} steps; back to the last "
            f"check, with strength {min(2 * self.strength, STRONGEST):g}",
            stacklevel=3,
        )
        theta, buffers, state = self._anchor
        self._write(theta)
        for name, buffer in self._model.named_buffers():
            buffer.copy_(buffers[name])
        self._restored(_with_groups(state, self.base))
        self.rollbacks += 1
        self.strength = min(2 * self.strength, STRONGEST)
        self._held = None
        self._build()
        return self.drift()

    # --- points -----------------------------------------------------------------------------------------------------

    def _point(self, out: Tensor | None = None) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self._parameters], out=out)

    def _buffer(self, index: int) -> Tensor:
        """One of a few vectors of P that every step writes over: fresh memory of that size costs more than the sums."""
        if index not in self._scratch:
            vector = torch.empty_like(self.network.start)
            self._scratch[index] = vector, list(self.network.space.unflatten(vector).values())
        return self._scratch[index][0]

    def _views(self, theta: Tensor) -> list[Tensor]:
        """In the parameters' shapes; of a buffer, as they were cut once."""
        found = [views for vector, views in self._scratch.values() if vector is theta]
        return found[0] if found else list(self.network.space.unflatten(theta).values())

    @torch.no_grad()
    def _write(self, theta: Tensor) -> None:
        torch._foreach_copy_(self._parameters, self._views(theta))

    def _add(self, pull: Tensor) -> None:
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        torch._foreach_add_(gradients, self._views(pull))

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
        held, steered = (None if vector is None else vector.clone() for vector in (self._held, self._steered))
        own = {"steps": self.steps, "strength": self.strength, "rollbacks": self.rollbacks, "anchor": self._anchor}
        own |= {"built": self._source, "kept": [rows.outputs for rows in self._rows], "held": held}
        own |= {"curved": len(self._curved), "steered": steered, "unsteered": self._unsteered}
        return {**self.base.state_dict(), "invariant": own}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a saved state: load the model's weights first, and give the same memory or reference.

        Raises:
            ValueError: the state is not of an `Invariant`, or of one that keeps something else; nothing is loaded.
        """
        if "invariant" not in state_dict:
            raise ValueError("the state is of a plain optimiser, got no 'invariant' in it; load it into the base "
                             "optimiser before Invariant(base, ...) is made")  # fmt: skip
        own = state_dict["invariant"]
        given, here = ([tuple(rows.shape) for rows in kept] for kept in (own["kept"], [r.outputs for r in self._rows]))
        if given != here or own["curved"] != len(self._curved):
            raise ValueError(
                f"the state keeps outputs of shapes {given} and {own['curved']} curvatures, this optimiser {here} and "
                f"{len(self._curved)}; give the memory or reference that the state was saved with"
            )
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
        self.strength, self._held = own["strength"], None
        if own["held"] is not None:
            self._held = self._buffer(4).copy_(own["held"])
        steered, self._unsteered = own["steered"], own["unsteered"]
        self._steered = None if steered is None else self._buffer(0).copy_(steered)


def _with_groups(state: dict[str, Any], base: Optimizer) -> dict[str, Any]:
    """A saved state with the rates of now: a schedule does not go back."""
    return {**state, "param_groups": base.state_dict()["param_groups"]}


def _same_parameters(base: Optimizer, parameters: Sequence[Tensor], model: nn.Module) -> None:
    """Refuses other parameters than those that are trained; frozen ones, which have no gradient, may be there too."""
    held = {id(p) for group in base.param_groups for p in group["params"]}
    missing = sum(id(p) not in held for p in parameters)
    frozen = {id(p) for p in model.parameters() if not p.requires_grad}
    foreign = len(held - {id(p) for p in parameters} - frozen)
    if missing or foreign:
        raise ValueError(
            f"the base optimiser must hold the parameters that are trained and no others: {missing} of the model's are "
            f"missing from it and {foreign} are not to be trained or not the model's; build it from the same model, or "
            "use trainable="
        )

"""For your own training loop: an optimiser whose steps respect what is kept."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from isopath.arguments import check_kind, check_module
from isopath.geometry.curvature import Curvature
from isopath.geometry.divergence import divergence_of
from isopath.geometry.estimated import Estimated
from isopath.geometry.memory import Memory
from isopath.geometry.metric import Metric
from isopath.geometry.reference import Reference, References
from isopath.network import Network
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
        renew: int = 1, batch_size: int = 64, trainable: Trainable = None, seed: int = 0,
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
        if strength < 0 or not damping > 0 or min(check_every, refresh, renew) < 1:
            raise ValueError(
                f"strength must be >= 0, damping > 0, check_every, refresh and renew >= 1, got {strength}, {damping}, "
                f"{check_every}, {refresh} and {renew}"
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
        self.seed = seed
        self.steps = self.rollbacks = 0
        self._model = model
        self._curved, self._rows, self._told = _pulls(keep, self.network, seed)
        self._metric: Metric | None = None
        self._damping = 1.0
        self._scratch: dict[int, Tensor] = {}
        self._held: Tensor | None = None  # the pull of kept curvature, as it was last computed
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
            before = self._point(self._buffer(0))
            self._add(self._pull(before))
            self.base.step()
            step = self._point(self._buffer(1)).sub_(before)
            self._write(before.add_(self._metric.solve(step, self._damping), alpha=self._damping))
        self.steps += 1
        if self.steps % self.check_every == 0:
            self.check()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the base optimiser's."""
        self.base.zero_grad(set_to_none)

    def _pull(self, theta: Tensor) -> Tensor:
        """λ Σ ∇D_t, in the units of the loss; of a task that has both, by its rows and by its curvature."""
        if self._held is None or self.steps % self.renew == 0:
            self._held = self._summed(self._curved, theta)
        return self._summed(self._rows, theta).add_(self._held) if self._rows else self._held

    def _summed(self, pulls: Sequence[_Rows | _Curved], theta: Tensor) -> Tensor:
        total = torch.zeros_like(theta)
        for pull in pulls:
            total.add_(pull.gradient(theta, self.steps, self.batch_size), alpha=self.strength * pull.weight)
        return total

    def _judges(self) -> list[_Rows | _Curved]:
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
        """One of two vectors of P that every step writes over: fresh memory of that size costs more than the sums."""
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


@dataclass(frozen=True, eq=False)
class _Curved:
    """A task of which the curvature is kept."""

    estimate: Estimated
    weight: float
    measured: bool  # rows are kept too, and its drift is theirs

    def gradient(self, theta: Tensor, step: int, size: int) -> Tensor:
        """G(θ - θ_t)."""
        return self.estimate.pull(theta)

    def drift(self, theta: Tensor) -> float:
        """½(θ - θ_t)ᵀG(θ - θ_t)."""
        return self.estimate.whole_drift(theta)


class _Rows:
    """A task of which rows are kept, with their outputs."""

    def __init__(self, reference: Reference, weight: float, network: Network, seed: int) -> None:
        self.reference, self.weight, self.network, self.seed = reference, weight, network, seed
        kept = reference.outputs
        if kept is None:  # as the model is now: later it will be another, and its statistics too
            kept = torch.cat([batch.kept for batch in reference.whole(network, network.start).batches])
        self.bind(kept)

    def bind(self, outputs: Tensor) -> None:
        """Takes the outputs to keep."""
        self.outputs = outputs
        self.reference = replace(self.reference, outputs=outputs)
        self.kept = self.reference.bind(self.network, self.network.start, self.seed)

    def gradient(self, theta: Tensor, step: int, size: int) -> Tensor:
        """∇D on the batch of a step."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        reference, size = self.reference, min(size, len(self.reference))
        weights = reference.weights
        if weights is None or bool(weights.max() <= 1.01 * weights.min()):  # shares of tasks differ by a row
            rows = torch.randint(len(reference), (size,), generator=generator)
        else:  # drawn by weight and counted alike: a small batch weighed by its own sum would lean to the light rows
            rows = torch.multinomial(weights.cpu(), size, replacement=True, generator=generator)
            reference = replace(reference, weights=None)
        with torch.enable_grad():
            return reference._part(self.network, self.kept.start, rows).gradient(theta)

    def drift(self, theta: Tensor) -> float:
        """D on all rows."""
        return self.kept.whole_drift(theta)


def _pulls(
    keep: Memory | Reference | References, network: Network, seed: int
) -> tuple[list[_Curved], list[_Rows], list[_Rows]]:
    """What holds the weights, each with the weight that makes its divergence count as nats do; then what each task's
    drift is measured on."""
    if not isinstance(keep, Memory):
        parts = keep.parts if isinstance(keep, References) else (keep,)
        held = [_Rows(p, 1 / _scale(p.divergence), network, seed + i) for i, p in enumerate(parts)]
        return [], held, held
    scale = _scale(keep.divergence)
    with_rows = [task for task in keep.tasks if task.outputs is not None]
    told = [_Rows(part, task.weight / scale, network, seed + i)
            for i, (task, part) in enumerate(zip(with_rows, keep.references(network.space.device).parts))]  # fmt: skip
    drawn = [rows for task, rows in zip(with_rows, told) if task.sketch is not None]
    held = [rows for rows in told if rows not in drawn] + _together(drawn, network, seed)
    curved = []
    for task in keep.tasks:
        if task.curvature is not None:
            weight = (1.0 if keep.merge else task.weight) / scale
            measured = bool(with_rows) if keep.merge else task.outputs is not None
            curved.append(_Curved(Estimated.of(task, network), weight, measured))
    return curved, held, told


def _together(parts: Sequence[_Rows], network: Network, seed: int) -> list[_Rows]:
    """Those of one head as one, each with its weight: a step then passes once over a batch of them all."""
    found, left = [], list(parts)
    while left:
        same = [rows for rows in left if _alike(rows.reference, left[0].reference)]
        left = [rows for rows in left if rows not in same]
        references = [rows.reference for rows in same]
        inputs, outputs = (torch.cat([getattr(r, key) for r in references]) for key in ("inputs", "outputs"))
        weights = torch.cat([torch.full((len(rows.reference),), rows.weight / len(rows.reference)) for rows in same])
        whole = replace(references[0], inputs=inputs, outputs=outputs, weights=weights)
        found.append(_Rows(whole, sum(rows.weight for rows in same), network, seed))
    return found


def _alike(a: Reference, b: Reference) -> bool:
    """Whether rows of both fit one batch."""
    shapes = [(r.inputs.shape[1:], r.inputs.dtype, r.outputs.shape[1:]) for r in (a, b) if r.outputs is not None]
    return a.output == b.output and shapes[0] == shapes[-1]


def _scale(divergence: Any) -> float:
    """The curvature of a softmax divergence in units of that of the log-likelihood."""
    return float(getattr(divergence_of(divergence), "scale", 1.0))

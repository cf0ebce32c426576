"""The straight line between two networks, made low by rescaling the units of one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from isopath.arguments import check_kind, check_module, check_numbers
from isopath.connect.curve import Curve, begin
from isopath.connect.statistics import BatchNetwork, normalisations
from isopath.network import Network, copied
from isopath.objectives import Objective, as_objective
from isopath.space import Trainable
from isopath.symmetry import Permutation, Symmetries, nearest
from isopath.symmetry.rescaling import rescaled as multiplied

DRAWS = 16  # pairs of t and batch on which what was found is judged


def rescaled(
    model_a: nn.Module,
    model_b: nn.Module,
    objective: Objective | Any,
    permutation: Permutation | Symmetries,
    steps: int = 600,
    rate: float = 3e-3,
    trainable: Trainable = None,
    seed: int = 0,
) -> Curve:
    """The straight line to the second network, its units rescaled so that the objective is low along that line.

    A unit behind a ReLU may be multiplied by a positive number that the next layer undoes; so may what a normalisation
    gives out, queries against keys, values against the projection after them. The network computes the same, but the
    straight line to it passes other networks. From where the parameters are nearest (`nearest`), the
    logarithms u of all factors s = e^u go down

        E_{t ~ U(0, 1)} L((1 - t) θ_a + t s·Pθ_b)

    by Adam, its rate falling in a straight line: one t and one batch per step, as in the training of a curve, but with
    few numbers to find, one for each unit. `line.model(1)` is the rescaled network: the same function as `model_b`.

    A line that is lower on the data that the networks were trained on need not be lower on others; with many steps at
    a large rate it is not. Give data of which the networks have seen nothing, if you can.

    Args:
        model_a: the network at t = 0.
        model_b: the network at t = 1; neither is modified.
        objective: what is to be low along the line.
        permutation: of `model_b`, applied before (`align`), or the `Symmetries` of an aligned network.
        steps: of training; 0 chooses between the line as it is given and that to the nearest parameters.
        rate: of Adam at first.
        trainable: as for `connect`.
        seed: of t and of the objective's batches.

    Returns:
        The line. Its history has step, t, objective and gradient evaluations; over fixed t and batches its mean
        objective is never above that of the line to `model_b` as it is given.

    Raises:
        TypeError: an argument is of another kind.
        ValueError: the networks differ in a shape, or no unit of theirs can be rescaled.
    """
    check_module(model_a, "model_a")
    check_module(model_b, "model_b")
    check_kind(permutation, (Permutation, Symmetries), "permutation", "give ip.align(...) or ip.symmetries(...)")
    check_numbers(steps=steps, rate=rate)
    if steps < 0 or not float(steps).is_integer() or not rate > 0:
        raise ValueError(f"steps must be a whole number >= 0 and rate > 0, got {steps} and {rate}")
    far = permutation(model_b) if isinstance(permutation, Permutation) else copied(model_b)
    found = permutation.symmetries if isinstance(permutation, Permutation) else permutation
    options: dict[str, Any] = {"curve": "segment", "bends": 1, "steps": 0, "rate": rate, "sampling": "uniform",
                               "permutation": None, "trainable": trainable, "seed": seed}  # fmt: skip
    plain, _ = begin(model_a, far, None, **options)
    found = _moving(found, set(plain.trainable), far)
    network = BatchNetwork(model_a, trainable) if normalisations(model_a) else Network(model_a, trainable)
    close, objective = nearest(model_a, far, found), as_objective(objective)
    search = _Search(network, close, found, objective, rate, seed)
    for _ in range(int(steps)):
        search.step(steps)
    judged = [search.judged(model) for model in (far, close, search.model())]
    best = min(range(3), key=lambda i: judged[i])
    line, _ = begin(model_a, (far, close, search.model())[best], None, **options)
    last = {"evaluations": network.evaluations}
    return replace(line, history=[*search.history[:-1], {**search.history[-1], **last}] if steps else [])


def _moving(found: Symmetries, trainable: set[str], far: nn.Module) -> Symmetries:
    """With the rescalings of parameters that move alone."""
    shapes = {name: tuple(t.shape) for name, t in [*far.named_parameters(), *far.named_buffers()]}
    other = [name for name in found.places if shapes.get(name) != tuple(found.shapes.get(name, shapes.get(name, ())))]
    if other:
        got, expected = shapes.get(other[0], "missing"), found.shapes.get(other[0])
        raise ValueError(f"the symmetries are of another model: {other[0]!r} is {got} in model_b, expected {expected}")
    still = {name for name, _ in far.named_parameters()} - trainable
    free = tuple(s for s in found.scalings if not still & {name for name, _, _ in s.exponents})
    if not free:
        why = "the symmetries have none: tanh and the like allow none, and rescalings=False does not look for them"
        why = "all that can be touch parameters that do not move" if found.scalings else why
        raise ValueError(f"no units can be rescaled: {why}; the straight line is ip.connect(a, b, curve='segment')")
    return replace(found, scalings=free)


class _Search:
    """Adam on the logarithms of all factors of the far end.

    Args:
        network: of the near end.
        far: the far end.
        found: its symmetries.
        objective: what is to be low.
        rate: at first.
        seed: of t and of batches.
    """

    def __init__(
        self, network: Network, far: nn.Module, found: Symmetries, objective: Objective, rate: float, seed: int
    ) -> None:
        self.network, self.far, self.found, self.objective = network, far, found, objective
        self.rate, self.seed, self.history = rate, seed, list[dict[str, float]]()
        # leaves of the graph: several views of one tensor are multiplied in place, of which a constant allows but one
        moving, named = set(network.space.names), dict([*far.named_parameters(), *far.named_buffers()])
        self._tensors = {name: t.detach().requires_grad_(name in moving) for name, t in named.items()}
        own = {id(b) for layer in normalisations(far) for b in layer.buffers()}  # of the batch, in the steps
        self._buffers = {name: (b.clone(), far.get_buffer(name)) for name, b in network._skeleton.named_buffers()
                         if id(far.get_buffer(name)) not in own}  # fmt: skip
        self._logarithms = [
            torch.zeros(found.groups[scaling.group].shape, dtype=network.space.dtype, device=network.space.device)
            .requires_grad_(True) for scaling in found.scalings
        ]  # fmt: skip
        self._optimiser = torch.optim.Adam(self._logarithms, rate)
        self._generator = torch.Generator().manual_seed(seed)

    @torch.enable_grad()
    def step(self, steps: float) -> None:
        """One of `steps`."""
        number = len(self.history)
        self._optimiser.param_groups[0]["lr"] = self.rate * (1 - number / steps)
        t = float(torch.rand((), generator=self._generator, dtype=torch.float64))
        value = self.objective.freeze(number, self.seed)(self.network, self._between(t))
        for logarithm, gradient in zip(self._logarithms, torch.autograd.grad(value, self._logarithms)):
            logarithm.grad = gradient
        self._optimiser.step()
        row = {"step": number, "t": t, "objective": float(value.detach())}
        self.history.append({**row, "evaluations": self.network.evaluations})

    def _between(self, t: float) -> Tensor:
        factors = {k: logarithm.exp() for k, logarithm in enumerate(self._logarithms)}
        far = multiplied(self._tensors, self.found, factors)
        self._at(t, far)
        point = torch.cat([far[name].reshape(-1) for name in self.network.space.names])
        return torch.lerp(self.network.start, point, t)

    @torch.no_grad()
    def _at(self, t: float, far: Mapping[str, Tensor]) -> None:
        """Gives the network the buffers that the line has at t, as `Curve.at` does."""
        own = dict(self.network._skeleton.named_buffers())
        for name, (a, _) in self._buffers.items():
            b = far[name]
            own[name].copy_(torch.lerp(a, b, t) if a.is_floating_point() else (a if t < 0.5 else b))

    @torch.no_grad()
    def judged(self, far: nn.Module) -> float:
        """The mean objective of the straight line to a network over t on a grid, each with a batch of its own."""
        end, total = self.network.space.flatten(dict(far.named_parameters())), 0.0
        buffers = dict(far.named_buffers())
        for k in range(DRAWS):
            batch, t = self.objective.freeze(k, self.seed + 1), (k + 0.5) / DRAWS
            self._at(t, buffers)
            total += float(batch(self.network, torch.lerp(self.network.start, end, t))) / DRAWS
        return total

    @torch.no_grad()
    def model(self) -> nn.Module:
        """The far end, rescaled in float64."""
        module, factors = copy.deepcopy(self.far), [u.detach().double().exp() for u in self._logarithms]
        named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        tensors = {name: named[name].detach().double() for name in self.found.places if name in named}
        for name, value in multiplied(tensors, self.found, dict(enumerate(factors))).items():
            named[name].copy_(value)
        return module

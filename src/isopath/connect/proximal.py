"""Curve and permutation in turns: how near a local optimum is an alignment?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from isopath.connect.curve import Curve, begin
from isopath.connect.training import Training, combined
from isopath.network import Network
from isopath.objectives import Objective, as_objective
from isopath.path import Bezier, PolyChain
from isopath.space import Trainable
from isopath.symmetry import Permutation, Symmetries
from isopath.symmetry.matching import Descent
from isopath.symmetry.similarity import Weights

HALVINGS = 10


@dataclass(frozen=True, eq=False)
class Alternation:
    """What proximal alternating minimisation found.

    Attributes:
        curve: between the first network and the second one permuted.
        permutation: of the second network, the one to start from included.
        rounds: of each: the objective's mean over fixed t and batches before and after its permutation step, how many
            units that step displaced, and the gradient evaluations so far.
    """

    curve: Curve
    permutation: Permutation
    rounds: list[dict[str, float]]


def alternating(
    model_a: nn.Module,
    model_b: nn.Module,
    objective: Objective | Any,
    permutation: Permutation | Symmetries,
    rounds: int = 10,
    steps: int = 100,
    rate: float = 1e-3,
    bends: int = 1,
    draws: int = 16,
    trainable: Trainable = None,
    seed: int = 0,
) -> Alternation:
    """Trains a Bezier curve and the permutation of its far end in turns: proximal alternating minimisation.

    Tatro et al. 2020 (arXiv 2009.02439, section 3.2) minimise E_t L(γ(t)) over the curve's inner points and over the
    permutation P of the second network, each in turn held near where it was. Here the permutation's turn is

        P⁺ = argmin_P <G, P θ_b> + ‖P θ_b - θ_b‖² / 2ν,    G = ∂ E_t L / ∂ θ_b,

    that is, weight matching of θ_b to θ_b - νG: a linear assignment for each group. It is taken only if the mean
    objective over fixed t and batches falls, with ν halved up to ten times; so no round ends with a permutation worse
    than it began with. Beyond about seven layers no step has been seen to lower it.

    Args:
        model_a: the network at t = 0.
        model_b: the network at t = 1; neither is modified.
        objective: what is to be low along the curve.
        permutation: of `model_b` to start from (`align`); `Symmetries` start from the identity.
        rounds: of curve and permutation.
        steps: of the curve's training in every round; the rate goes down over all rounds.
        rate: of Adam at first.
        bends: inner points of the curve.
        draws: pairs of t and batch that a permutation is judged on.
        trainable: as for `connect`.
        seed: of everything.
    """
    if rounds < 1 or draws < 1:
        raise ValueError(f"rounds and draws must be >= 1, got {rounds} and {draws}")
    current = permutation if isinstance(permutation, Permutation) else Permutation.identity(permutation)
    curve, training = begin(
        model_a, model_b, objective, "bezier", bends, rounds * steps, rate, "uniform", current, trainable, seed
    )
    assert training is not None
    far, history, log = current(model_b), [], []
    stream = iter(training)
    for number in range(rounds):
        history += [next(stream) for _ in range(steps)]
        judge = _Judge(training, as_objective(objective), draws, seed * 1009 + number)
        moved, row = _permuted(judge, far, current.symmetries, trainable, seed)
        log.append({"round": number, **row, "evaluations": training.network.evaluations})
        if moved is not None:
            current, far = moved @ current, moved(far)
            training.path.points[-1].copy_(Network(far, trainable).start)  # type: ignore[union-attr]
    ends = curve.ends[0], {name: b.detach().clone() for name, b in far.named_buffers()}
    return Alternation(replace(curve, ends=ends, history=history), current, log)


class _Judge:
    """The mean objective over fixed t and batches, as a function of the far end."""

    def __init__(self, training: Training, objective: Objective, draws: int, seed: int) -> None:
        self.path: Bezier | PolyChain = training.path
        self.network, self.seed = training.network, seed
        generator = torch.Generator().manual_seed(seed)
        self.draws = [
            (float(torch.rand((), generator=generator, dtype=torch.float64)), objective.freeze(k, seed))
            for k in range(draws)
        ]

    def value(self, far: Tensor) -> float:
        """At a far end."""
        points = [*self.path.points[:-1], far]
        with torch.no_grad():
            values = [float(some(self.network, combined(points, self.path.weights(t)))) for t, some in self.draws]
            return sum(values) / len(values)

    def gradient(self) -> Tensor:
        """With respect to the far end where it is."""
        total: Tensor | None = None
        for t, some in self.draws:
            weights = self.path.weights(t)
            theta = combined(self.path.points, weights).requires_grad_(True)
            (found,) = torch.autograd.grad(some(self.network, theta), theta)
            total = weights[-1] * found if total is None else total.add_(found, alpha=weights[-1])
        assert total is not None
        return total.div_(len(self.draws))


def _permuted(
    judge: _Judge, far: nn.Module, found: Symmetries, trainable: Trainable, seed: int
) -> tuple[Permutation | None, dict[str, float]]:
    """A permutation step that lowers the objective; `None` if there is none among the lengths tried."""
    network = Network(far, trainable)
    start, gradient = network.start, judge.gradient()
    before = judge.value(start)
    length = float(start.norm() / gradient.norm().clamp_min(1e-300))
    own = dict(far.named_parameters())
    for k in range(HALVINGS):
        goal = network.space.unflatten(start - length * 0.5**k * gradient)
        step = Descent(found, [(1.0, Weights({**own, **goal}, own, found))], seed).run(100, settle=False)
        displaced = sum(step.displaced.values())
        if not displaced:  # nor will a shorter step
            break
        after = judge.value(Network(step(far), trainable).start)
        if after < before:
            return step, {"before": before, "after": after, "displaced": displaced}
    return None, {"before": before, "after": before, "displaced": 0}

"""Back on what is left: outputs restored by small steps on few rows at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from isopath.geometry.batch import Batch
from isopath.geometry.divergence import divergence_of
from isopath.geometry.reference import Keeping, Kept, KeptAll, Part, Reference
from isopath.network import Network
from isopath.trace.normalisation import BatchStatistics

MEASURED = 256  # rows on which the statistics of batch norms are measured, before and after a round


@dataclass(frozen=True)
class Recovery:
    """Steps on the drift of small batches, along the weights that stay: distillation of the network into its own rest.

    The steps are Adam's (Kingma & Ba 2015, arXiv 1412.6980), whose moments go on from round to round. Batches come from
    every row of the reference but those that judge; of a task whose rows are not kept the gradient is its curvature's.

    Args:
        steps: in each round.
        batch_size: rows of each reference in a step.
        rate: of the first round; it falls to zero along half a cosine over the rounds, and is halved wherever a
            round's steps did more harm than good.
        warmup: steps over which the rate rises.
        betas: of the running means of the gradient and of its square.
        batch_statistics: batch norms take the statistics of each batch in the steps, as in training; afterwards their
            scale and shift make up for it, and running statistics stay as they are. That is so of layers whose scale
            and shift are trained, that are called once, and that have at least 1,024 values of a channel in a batch
            (convolutions), where one reference with its rows is all that is kept.
    """

    steps: int = 50
    batch_size: int = 128
    rate: float = 8e-3
    warmup: int = 50
    betas: tuple[float, float] = (0.9, 0.999)
    batch_statistics: bool = True

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size) < 1 or not self.rate > 0 or self.warmup < 0:
            raise ValueError(
                f"steps and batch_size must be >= 1, rate > 0 and warmup >= 0, got {self.steps}, {self.batch_size}, "
                f"{self.rate} and {self.warmup}"
            )


@dataclass(frozen=True, eq=False)
class Rows:
    """What the steps read: the rows of every reference that do not judge, and the curvature of the rest.

    Args:
        network: that moves.
        kept: what is kept.
        seed: that it was split with, and of the batches.
    """

    network: Network
    kept: KeptAll
    seed: int
    _parts: tuple[_Drawn | Keeping, ...] = field(default=(), init=False, repr=False)

    def __post_init__(self) -> None:
        parts = [_Drawn.of(part, self.network, self.seed + i) if isinstance(part, Kept) else part
                 for i, part in enumerate(self.kept.parts)]  # fmt: skip
        object.__setattr__(self, "_parts", tuple(parts))

    def gradient(self, theta: Tensor, step: int, size: int, network: Network | None = None) -> Tensor:
        """∇D on the batch of a step, `(P,)`: the same step gives the same rows, and each row comes once a pass."""
        total, network = torch.zeros_like(theta), network or self.network
        for k, part in enumerate(self._parts):
            if not isinstance(part, _Drawn):
                total += part.gradient(theta)
                continue
            batch = part.batch(step, size, self.seed + k)
            total += Part(network, [batch], size).gradient(theta)
        return total

    def batches(self, step: int, size: int, rows: int) -> list[Batch]:
        """Some rows' batches from a step on; none where several references, or a curvature, are kept."""
        if len(self._parts) != 1 or not isinstance(self._parts[0], _Drawn):
            return []
        part = self._parts[0]
        count = max(1, min(rows, len(part.rows)) // size)
        return [part.batch(step + k, size, self.seed) for k in range(count)]

    def drift(self, theta: Tensor, step: int, size: int) -> float:
        """The sum of the references' drifts on the batch of a step."""
        total = 0.0
        for k, part in enumerate(self._parts):
            if isinstance(part, _Drawn):
                total += Part(self.network, [part.batch(step, size, self.seed + k)], size).drift(theta)
            else:
                total += part.drift(theta).judged
        return total


@dataclass(frozen=True, eq=False)
class _Drawn:
    """A reference's rows but those that judge, with their outputs and weights, computed once."""

    reference: Reference
    rows: Tensor
    outputs: Tensor
    weights: Tensor
    network: Network
    _orders: dict[tuple[int, int], Tensor] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(cls, part: Kept, network: Network, seed: int) -> _Drawn:
        """Computes outputs and weights of every row, and leaves out those that judge."""
        reference, count = part.reference, len(part.reference)
        found = [(b.kept, b.weight) for b in reference._raw(network, part.start, torch.arange(count))]
        outputs, weights = (torch.cat(column) for column in zip(*found))
        # drawn as `Kept.of` draws them
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        if part.split:
            own = min(count, reference.sample) - part.check_part.rows
            order = torch.cat([order[:own], order[own + part.check_part.rows :]])
        return cls(reference, order, outputs, weights, network)

    def batch(self, step: int, size: int, seed: int) -> Batch:
        """The rows of a step."""
        per = max(1, len(self.rows) // size)
        rows = self._order(seed, step // per)[step % per * size :][:size]
        weight = self.weights[rows]
        weight = weight / weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)
        inputs = self.reference._placed(rows, self.network.space.device)
        divergence = divergence_of(self.reference.divergence)
        return Batch(inputs, self.outputs[rows], weight, divergence, self.reference.output)

    def _order(self, seed: int, turn: int) -> Tensor:
        """The rows in the order of a pass. That of one pass is held: of many rows it takes as long as a step does."""
        if (seed, turn) not in self._orders:
            self._orders.clear()
            generator = torch.Generator().manual_seed(seed * 1_000_003 + turn)
            self._orders[seed, turn] = self.rows[torch.randperm(len(self.rows), generator=generator)]
        return self._orders[seed, turn]


@dataclass(frozen=True, eq=False)
class Moments:
    """Running means of the gradient and of its square, `(P,)` each, and how many steps they have seen."""

    first: Tensor
    second: Tensor
    count: int = 0

    @classmethod
    def none(cls, theta: Tensor) -> Moments:
        """Before the first step."""
        return cls(torch.zeros_like(theta), torch.zeros_like(theta))


def recovered(
    recovery: Recovery, rows: Rows, theta: Tensor, support: Tensor, moments: Moments, rate: float, start: int
) -> tuple[Tensor, Moments]:
    """One round of steps on the support, from a point that lies on it.

    Args:
        recovery: how many steps, on how many rows.
        rows: that they read.
        theta: the point, `(P,)`; it is not modified.
        support: the coordinates that may move, `(P,)` booleans.
        moments: of the round before.
        rate: of this round.
        start: of the steps, which decides their rows: a round tried again reads others.
    """
    # By hand, not `torch.optim.Adam`: its moments must be part of the state that resumes, and its constant is absolute
    theta, (a, b) = theta.clone(), recovery.betas
    measured = rows.batches(start, recovery.batch_size, MEASURED) if recovery.batch_statistics else []
    normed = BatchStatistics.found(rows.network, theta, measured[0]) if measured else None
    theta = normed.entered(theta, measured) if normed else theta
    first, second, count = moments.first * support, moments.second * support, moments.count
    for step in range(start, start + recovery.steps):
        gradient = rows.gradient(theta, step, recovery.batch_size, normed).mul_(support)
        count += 1
        first.lerp_(gradient, 1 - a)
        second.lerp_(gradient.square_(), 1 - b)
        # Adam's constant under the root, in units of the gradient's: a drift may be as small as 1e-6
        # raised from zero, which most entries of a sparse network are and of which a root takes twenty times as long
        root = (second / (1 - b**count)).clamp_min_(torch.finfo(theta.dtype).tiny).sqrt_()
        root.add_(1e-3 * root.sum() / support.sum().clamp_min(1))
        length = rate * min(1.0, count / max(1, recovery.warmup))
        theta.addcdiv_(first, root, value=-length / (1 - a**count))
    theta = normed.left(theta, measured) * support if normed else theta
    return theta, Moments(first, second, count)

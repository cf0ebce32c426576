"""A loss over data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isopath.arguments import check_classes, check_targets
from isopath.examples import Examples
from isopath.network import Network, Output
from isopath.objectives.objective import Objective

Loss = Callable[[Tensor, Tensor], Tensor]


def _cross_entropy(y: Tensor, target: Tensor) -> Tensor:
    """Per row, zero where the target is -100; the classes are the last axis."""
    return F.cross_entropy(y.reshape(-1, y.shape[-1]), target.reshape(-1), reduction="none").reshape(target.shape)


def _bernoulli(y: Tensor, target: Tensor) -> Tensor:
    return _summed(F.binary_cross_entropy_with_logits(y, target.to(y), reduction="none"))


def _squared_error(y: Tensor, target: Tensor) -> Tensor:
    return _summed(0.5 * (y - target.to(y).reshape(y.shape)).square())


def _summed(each: Tensor) -> Tensor:
    """Over the last axis; of outputs `(N,)` every row is one."""
    return each.sum(-1) if each.ndim > 1 else each


LOSSES: dict[str, Loss] = {
    "cross_entropy": _cross_entropy,
    "bernoulli": _bernoulli,
    "squared_error": _squared_error,
}


@dataclass(frozen=True, eq=False)
class Task(Objective):
    """The mean loss over labelled data; a step sees one batch of it, drawn without replacement, epoch by epoch.

    Args:
        x: a tensor `(N, ...)`, a tuple or mapping of tensors, a `Dataset` or a `DataLoader` (then `y` may be `None`
            and comes from the pairs).
        y: targets with N rows: class indices `(N,)` or `(N, T)` (-100 is ignored), or values shaped like the outputs.
        loss: `"cross_entropy"`, `"bernoulli"` (multi-label), `"squared_error"`, or a function of `(outputs, targets)`
            that returns one value per row, or their mean.
        outputs: a slice of the outputs' last axis (a head of its own in a shared output), or what picks the output
            tensor: a key, an attribute's name, an index or a callable (see `Network`).
        batch_size: rows per step.
        weights: the weight of each row in the mean, `(N,)`.
        stem: a module of the task's own that makes the network's inputs of the task's, where several tasks are packed.
        head: likewise what makes its outputs of the network's.

    Raises:
        ValueError: zero rows, differing row counts, rows that are not finite, or an unknown loss.
        TypeError: data of an unknown kind, or no targets.
    """

    x: Any
    y: Any = None
    loss: str | Loss = "cross_entropy"
    outputs: Output = None
    batch_size: int = 256
    weights: Tensor | None = None
    index: Tensor | None = None  # the rows of a frozen task
    stem: nn.Module | None = None
    head: nn.Module | None = None

    def __post_init__(self) -> None:
        if isinstance(self.loss, str) and self.loss not in LOSSES:
            raise ValueError(f"unknown loss {self.loss!r}; the names are {', '.join(LOSSES)}, or give a function")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be >= 1, got {self.batch_size}")
        if self.weights is not None and (self.weights.shape != (len(self),) or not float(self.weights.min()) >= 0):
            raise ValueError(
                f"weights must be >= 0 of shape ({len(self)},), one per row, got {tuple(self.weights.shape)}"
            )
        if self.index is None and self.examples.take(torch.tensor([0]))[1] is None:
            raise TypeError("a task needs targets: pass y, or a dataset of (x, y) pairs")

    def __len__(self) -> int:
        return len(self.examples)

    @cached_property
    def examples(self) -> Examples:
        """The data, addressed by row."""
        return Examples.of(self.x, self.y, what="a task's inputs")

    def __call__(self, net: Network, theta: Tensor) -> Tensor:
        """The mean loss over the frozen batch, or over everything in batches where none is.

        Raises:
            ValueError: the task has a stem or a head, which only a packing gives a place.
        """
        if self.stem is not None or self.head is not None:
            raise ValueError(
                "a task's stem and head are learned where tasks are packed; for a trace build them into the model"
            )
        rows = torch.arange(len(self)) if self.index is None else self.index
        total, share = torch.zeros((), dtype=theta.dtype, device=theta.device), 0.0
        for part in rows.split(self.batch_size):
            y, target = self.predict(net, theta, part)
            value, weight = self.loss_of(y, target, part)
            total, share = total + value, share + weight
        return total / share if share else total

    def freeze(self, step: int, seed: int) -> Task:
        """The task on the batch of a step: epochs are permutations of their own, seeded."""
        size = min(self.batch_size, len(self))
        per_epoch = len(self) // size
        epoch, position = divmod(step, per_epoch)
        order = _permutation(len(self), seed, epoch)
        frozen = copy.copy(self)  # not replace(): the data was checked once and need not be at every step
        object.__setattr__(frozen, "index", order[position * size : (position + 1) * size])
        return frozen

    def predict(self, net: Network, theta: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs and targets on `rows`."""
        inputs, target = self.examples.take(rows, net.space.device)
        return net(theta, inputs, self.outputs), target

    def loss_of(self, y: Tensor, target: Tensor, rows: Tensor) -> tuple[Tensor, float]:
        """The weighted sum of the loss over the rows, and the sum of the weights."""
        check_classes(y, target, self.loss)
        try:
            value = (LOSSES[self.loss] if isinstance(self.loss, str) else self.loss)(y, target)
        except (IndexError, RuntimeError, ValueError, AttributeError, TypeError):
            check_targets(y, target, self.loss)
            raise
        if value.ndim == 0:
            return value * len(rows), float(len(rows))
        weight = torch.ones_like(value) if self.weights is None else _spread(self.weights[rows], value)
        if self.loss == "cross_entropy":
            weight = weight * (target != -100)
        return (value * weight).sum(), float(weight.sum())


def _spread(weights: Tensor, value: Tensor) -> Tensor:
    return weights.to(value).reshape(-1, *[1] * (value.ndim - 1)).expand_as(value)


@lru_cache(maxsize=4)
def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))

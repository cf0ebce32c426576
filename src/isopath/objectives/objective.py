"""What is wanted: a scalar to lower, and perhaps a set to end on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from isopath.network import Network

Scalar = Callable[[Network, Tensor], Tensor]


class Objective(ABC):
    """A function of the network and a point, `(net, theta) -> scalar`, to be lowered. Objectives add and scale.

    Only the call must be given; any callable `(net, theta) -> scalar` is one, alone or in a sum.
    """

    @abstractmethod
    def __call__(self, net: Network, theta: Tensor) -> Tensor:
        """The value at `theta`, a scalar, differentiable in it."""

    def freeze(self, step: int, seed: int) -> Objective:
        """The objective on the batch of one step: the same `(step, seed)` gives the same batch."""
        return self

    def project(self, net: Network, theta: Tensor) -> Tensor | None:
        """The nearest point of the set to end on, `(P,)`; `None` where there is no such set."""
        return None

    def support(self, net: Network, theta: Tensor) -> Tensor | None:
        """Which coordinates may still move once on the set, `(P,)` booleans; `None` for all."""
        return None

    def reached(self, net: Network, theta: Tensor) -> bool:
        """Whether nothing is left to lower."""
        return False

    def __add__(self, other: Objective | Scalar) -> Objective:
        return Sum(((1.0, self),)) + other

    def __radd__(self, other: Scalar | int) -> Objective:
        return self if other == 0 else as_objective(other) + self  # type: ignore[arg-type]

    def __mul__(self, weight: float) -> Objective:
        return Sum(((float(weight), self),))

    __rmul__ = __mul__


@dataclass(frozen=True)
class Sum(Objective):
    """Σ weight * objective."""

    terms: tuple[tuple[float, Objective], ...]

    def __call__(self, net: Network, theta: Tensor) -> Tensor:
        total = torch.zeros((), dtype=theta.dtype, device=theta.device)
        for weight, term in self.terms:
            value = term(net, theta)
            check_scalar(value)
            total = total + weight * value
        return total

    def freeze(self, step: int, seed: int) -> Sum:
        """Every term on its own batch of the step."""
        return Sum(tuple((weight, term.freeze(step, seed)) for weight, term in self.terms))

    def project(self, net: Network, theta: Tensor) -> Tensor | None:
        """The point after every term's projection in turn; `None` where no term has a set."""
        projected = None
        for _, term in self.terms:
            landed = term.project(net, theta if projected is None else projected)
            projected = projected if landed is None else landed
        return projected

    def support(self, net: Network, theta: Tensor) -> Tensor | None:
        """The coordinates that every term leaves free; `None` where none restricts them."""
        masks = [mask for _, term in self.terms if (mask := term.support(net, theta)) is not None]
        return torch.stack(masks).all(0) if masks else None

    def reached(self, net: Network, theta: Tensor) -> bool:
        """Whether every term is finished."""
        return all(term.reached(net, theta) for _, term in self.terms)

    def __add__(self, other: Objective | Scalar) -> Sum:
        other = as_objective(other)
        return Sum(self.terms + (other.terms if isinstance(other, Sum) else ((1.0, other),)))

    def __mul__(self, weight: float) -> Sum:
        return Sum(tuple((weight * w, term) for w, term in self.terms))

    __rmul__ = __mul__


@dataclass(frozen=True)
class Function(Objective):
    """A user's callable `(net, theta) -> scalar`."""

    function: Scalar

    def __call__(self, net: Network, theta: Tensor) -> Tensor:
        return self.function(net, theta)


def as_objective(given: Objective | Scalar) -> Objective:
    """An objective as it is, or a callable `(net, theta) -> scalar` made into one.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(given, Objective):
        return given
    if callable(given):
        return Function(given)
    raise TypeError(f"an objective is a callable (net, theta) -> scalar, got {type(given).__name__}")


def check_scalar(value: Tensor) -> None:
    """Raises `TypeError` unless `value` is a tensor with a single entry, and `ValueError` if it is not a scalar."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"the objective returned {type(value).__name__}, expected a scalar tensor; compute it with torch"
        )
    if value.ndim:
        raise ValueError(
            f"the objective returned a tensor of shape {tuple(value.shape)}, expected a scalar (); "
            "take the mean over the examples"
        )

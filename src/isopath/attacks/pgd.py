"""Adversarial inputs by projected gradient descent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from isopath.arguments import check_count, check_numbers

Norm = Literal["linf", "l2"]
Rows = Callable[[Tensor, Tensor], Tensor]


def cross_entropy_rows(y: Tensor, target: Tensor) -> Tensor:
    """The cross-entropy of each row, `(N, C), (N,) -> (N,)`."""
    return torch.nn.functional.cross_entropy(y, target, reduction="none")


@dataclass(frozen=True)
class PGD:
    """Projected gradient ascent on the loss within a ball around each input (Madry et al. 2018, arXiv 1706.06083).

    x ← Π(x + α sign ∇_x L) for the largest absolute change, x ← Π(x + α ∇_x L / ‖∇_x L‖) for the Euclidean one; Π
    projects onto the ball and onto the range of valid inputs; what of a gradient is NaN counts as zero. Every restart
    begins at a random point of the ball, but for the first if `random` is false, and each input keeps the strongest of
    all the points that its restarts end on, one with a loss of NaN before all others.

    Args:
        eps: radius of the ball, in units of the inputs.
        steps: of each restart.
        step_size: α; 2.5 eps / steps by default.
        restarts: starts per input.
        norm: `"linf"` or `"l2"`.
        low, high: range of valid inputs; `None` for no bound.
        random: whether the first start is random too.

    Raises:
        ValueError: a number is out of range, or an unknown norm.
    """

    eps: float
    steps: int = 10
    step_size: float | None = None
    restarts: int = 1
    norm: Norm = "linf"
    low: float | None = 0.0
    high: float | None = 1.0
    random: bool = True

    def __post_init__(self) -> None:
        check_numbers(eps=self.eps, low=self.low, high=self.high, step_size=self.step_size)
        check_count(self.steps, "steps")
        check_count(self.restarts, "restarts")
        if self.norm not in ("linf", "l2"):
            raise ValueError(f"norm must be 'linf' or 'l2', got {self.norm!r}")
        size = 1.0 if self.step_size is None else self.step_size
        if not (self.eps >= 0 and size > 0):
            raise ValueError(f"eps must be >= 0 and step_size > 0, got {self.eps} and {self.step_size}")

    @property
    def evaluations(self) -> int:
        """Forward and backward passes per input; to judge each restart takes a forward pass more."""
        return self.restarts * self.steps

    def __call__(
        self, function: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, generator: torch.Generator,
        loss: Rows = cross_entropy_rows,
    ) -> Tensor:  # fmt: skip
        """Inputs `(N, ...)` within the ball around `x` on which the loss is high.

        Args:
            function: from inputs to outputs, differentiable.
            x: inputs `(N, ...)`, of a floating type.
            y: targets with N rows.
            generator: of the random starts, on the CPU.
            loss: of each row, `(outputs, targets) -> (N,)`.

        Raises:
            TypeError: the inputs are no floating-point tensor: there is no ball around token ids.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            got = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(f"an attack moves floating-point inputs within a ball, got {got}")
        low, high = (float(x.min()), float(x.max())) if x.numel() else (0.0, 0.0)
        if (self.low is not None and low < self.low) or (self.high is not None and high > self.high):
            raise ValueError(
                f"the inputs range from {low:.3g} to {high:.3g}, outside of what the attack holds valid, {self.low} to "
                f"{self.high}; give the attack the bounds of your inputs, as in PGD(eps, low=..., high=...), or None "
                "for no bound"
            )
        best, highest = x.clone(), torch.full((len(x),), -torch.inf, dtype=x.dtype, device=x.device)
        with torch.enable_grad():
            for restart in range(self.restarts):
                point = self._start(x, generator) if self.random or restart else x.clone()
                for _ in range(self.steps):
                    point = point.detach().requires_grad_(True)
                    (gradient,) = torch.autograd.grad(loss(function(point), y).sum(), point)
                    point = self._inside(point.detach() + self._step(gradient), x)
                with torch.no_grad():
                    value = loss(function(point), y).to(highest).nan_to_num(torch.inf, torch.inf, -torch.inf)
                if value.shape != (len(x),):
                    raise ValueError(
                        f"an attack needs the loss of each row, ({len(x)},), got {tuple(value.shape)}; use "
                        'reduction="none"'
                    )
                better = value > highest
                highest = torch.where(better, value, highest)
                best = torch.where(_shaped(better, x), point, best)
        return best.detach()

    def _start(self, x: Tensor, generator: torch.Generator) -> Tensor:
        if self.norm == "linf":
            noise = (2 * torch.rand(x.shape, generator=generator) - 1).to(x)
            return self._inside(x + self.eps * noise, x)
        noise = torch.randn(x.shape, generator=generator).to(x)
        radius = torch.rand(len(x), generator=generator).to(x) ** (1 / max(1, x[0].numel()))
        return self._inside(x + self.eps * _shaped(radius / _norms(noise), x) * noise, x)

    def _step(self, gradient: Tensor) -> Tensor:
        size = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        if self.norm == "linf":
            return size * gradient.nan_to_num(0.0).sign()
        gradient = gradient.nan_to_num(0.0, 0.0, 0.0)  # one such entry would hold the whole row still
        return size * gradient / _shaped(_norms(gradient), gradient)

    def _inside(self, point: Tensor, x: Tensor) -> Tensor:
        change = point - x
        if self.norm == "linf":
            change = change.clamp(-self.eps, self.eps)
        else:
            change = change * _shaped((self.eps / _norms(change)).clamp_max(1), x)
        return x + change if self.low is None and self.high is None else (x + change).clamp(self.low, self.high)


def _norms(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1).clamp_min(1e-12)


def _shaped(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (x.ndim - 1))

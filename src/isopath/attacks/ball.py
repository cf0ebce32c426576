"""The ball around each input within which an attack may move, and the range of valid inputs."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from isopath.attacks.pgd import Norm


class Ball(Protocol):
    """What an attack says of where it may move: a radius, its norm, and the range of valid inputs."""

    @property
    def eps(self) -> float:
        """The radius, in units of the inputs."""
        ...

    @property
    def norm(self) -> Norm:
        """In which the radius is measured."""
        ...

    @property
    def low(self) -> float | None:
        """The least valid input; `None` for no bound."""
        ...

    @property
    def high(self) -> float | None:
        """The largest valid input; `None` for no bound."""
        ...


def check_ball(ball: Ball, x: Tensor) -> None:
    """Checks a ball against the inputs that it stands around.

    Args:
        ball: radius, norm and range.
        x: inputs `(N, ...)`.

    Raises:
        TypeError: the inputs are no floating-point tensor.
        ValueError: there is no row, an input is not finite or out of range, the range is empty, or the radius is
            negative or larger than the range allows.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = str(x.dtype) if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"an attack moves floating-point inputs within a ball, got {got}")
    if not x.numel() or not x.ndim:
        raise ValueError(f"an attack needs inputs (N, ...) with at least one row, got {tuple(x.shape)}")
    if ball.low is not None and ball.high is not None and not ball.low < ball.high:
        raise ValueError(f"low must be less than high, the range of valid inputs, got {ball.low} and {ball.high}")
    if not x.isfinite().all():
        raise ValueError(f"inputs {tuple(x.shape)} must be finite, got NaN or infinities; leave such rows out")
    least, most = float(x.detach().min()), float(x.detach().max())
    if (ball.low is not None and least < ball.low) or (ball.high is not None and most > ball.high):
        raise ValueError(
            f"the inputs {tuple(x.shape)} range from {least:.3g} to {most:.3g}, outside of what the attack holds "
            f"valid, {ball.low} to {ball.high}; give low= and high= of your inputs, or None for no bound"
        )
    widest = diameter(ball.norm, ball.low, ball.high, x)
    if not 0 <= ball.eps <= widest * (1 + 1e-6):
        raise ValueError(
            f"eps must be from 0 to {widest:.4g}, the {ball.norm} distance between the farthest two inputs "
            f"{tuple(x.shape[1:])} in [{ball.low}, {ball.high}], got {ball.eps}; is eps in the units of the inputs?"
        )


def diameter(norm: Norm, low: float | None, high: float | None, x: Tensor) -> float:
    """The largest distance between two valid inputs of the shape of `x`'s rows; infinite without bounds."""
    if low is None or high is None:
        return float("inf")
    return (high - low) * (1.0 if norm == "linf" else float(x[0].numel()) ** 0.5)


def check_inside(attacked: Tensor, x: Tensor, ball: Ball) -> None:
    """Checks that attacked inputs `(N, ...)` are within the ball and the range, up to rounding.

    Raises:
        ValueError: the shape changed, or an input lies outside.
    """
    if attacked.shape != x.shape:
        raise ValueError(f"the attack returned inputs {tuple(attacked.shape)}, expected {tuple(x.shape)}")
    change, rounding = (attacked - x).flatten(1).double(), 8 * torch.finfo(x.dtype).eps * float(x.abs().max())
    size = float((change.abs().amax(1) if ball.norm == "linf" else change.norm(dim=1)).max())
    below = ball.low is not None and float(attacked.min()) < ball.low - rounding
    above = ball.high is not None and float(attacked.max()) > ball.high + rounding
    slack = rounding * (1.0 if ball.norm == "linf" else change.shape[1] ** 0.5)
    if not size <= ball.eps * (1 + 1e-4) + slack or below or above:
        raise ValueError(
            f"the attack left its ball: it moved by up to {size:.4g} ({ball.norm}), expected at most {ball.eps}, to "
            f"inputs from {float(attacked.min()):.4g} to {float(attacked.max()):.4g} in [{ball.low}, {ball.high}]; "
            "project its result"
        )

"""An attack on a module, batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from isopath.attacks.ball import Ball, check_ball, check_inside
from isopath.attacks.pgd import Rows, cross_entropy_rows
from isopath.attacks.victim import Victim, labels_of
from isopath.network import Output
from isopath.randomness import seeded


class Attack(Ball, Protocol):
    """Moves inputs within a ball to where a function does badly: `PGD`, `AutoAttack`, or your own."""

    def __call__(
        self, function: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, generator: torch.Generator, loss: Rows = ...
    ) -> Tensor:
        """Attacked inputs `(N, ...)` for inputs `x` and targets `y`."""
        ...


def attack(
    model: nn.Module, x: Tensor, y: Tensor, attack: Attack, seed: int = 0, *, loss: Rows = cross_entropy_rows,
    batch_size: int = 256, output: Output = None,
) -> Tensor:  # fmt: skip
    """Adversarial inputs: max over ‖x' − x‖ ≤ eps of the loss of f(x') on y, as far as an attack finds it.

    The module is attacked in eval mode and not modified. An `Ensemble` is attacked as the one differentiable module
    that it is, log (1/M) Σ softmax fₘ(x), in one pass where it is `batched`.

    Args:
        model: any module that takes one tensor.
        x: inputs `(N, ...)`, floating-point, on the model's device.
        y: labels `(N,)`, or with a loss of your own any targets with N rows.
        attack: `isopath.attacks.PGD(eps)`, `isopath.attacks.AutoAttack(eps)`, or your own.
        seed: of the random starts. The same seed and batch size give the same bits.
        loss: of each row, `(outputs, targets) -> (N,)`; AutoAttack has its own.
        batch_size: rows in one pass.
        output: picks the output tensor from what the model returns (see `Network`); an ensemble has its own.

    Returns:
        Inputs `(N, ...)` within the ball around `x` and within the range of valid inputs.

    Raises:
        TypeError: the inputs are not floating-point, or the labels no integers.
        ValueError: shapes do not fit, the inputs are out of range, or no such ball fits into the range.
        ImportError: AutoAttack is not installed.

    >>> import isopath as ip
    >>> x, y = torch.full((3, 4), 0.5), torch.tensor([0, 1, 0])
    >>> attacked = ip.attack(nn.Linear(4, 2), x, y, ip.attacks.PGD(0.1, steps=3))
    >>> float((attacked - x).abs().max()) <= 0.1 + 1e-6
    True
    """
    check_ball(attack, x)
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    victim = Victim(model, output)
    if loss is cross_entropy_rows:
        with torch.no_grad(), seeded(x.device, seed):
            y = labels_of(y, x, victim(x[:2]))
    elif len(y) != len(x):
        raise ValueError(f"targets must have {len(x)} rows, one for each input, got {len(y)}")
    y = y.to(x.device)
    generator = torch.Generator().manual_seed(seed)
    parts = zip(x.detach().split(batch_size), y.split(batch_size))
    with seeded(x.device, seed):
        attacked = torch.cat([attack(victim, inputs, targets, generator, loss) for inputs, targets in parts])
    check_inside(attacked, x.detach(), attack)
    return attacked

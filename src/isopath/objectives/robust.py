"""A loss over attacked data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from isopath.attacks import PGD, Attack
from isopath.network import FORWARD, Network, Output
from isopath.objectives.task import LOSSES, Loss, Task
from isopath.randomness import seeded


class Robust(Task):
    """The mean loss where every input is moved within a ball to where the network does worst: adversarial training.

    The attack is made anew at every point that is asked for, on the network there; its passes count as gradient
    evaluations. Scored like any task (`isopath.evaluate`, `isopath.along`), it gives robust loss and accuracy.

    Args:
        x: a floating-point tensor `(N, ...)`, a `Dataset` or a `DataLoader`.
        y: targets with N rows.
        eps: radius of the ball, in units of the inputs.
        attack: `PGD(eps)` by default: 10 steps within the largest absolute change, inputs in [0, 1]. With an attack of
            your own `eps` is not read.
        loss: as for `Task`, but a function must return one value per row.
        outputs, batch_size, weights: as for `Task`.
        seed: of the attack's random starts; the same batch and point have the same attack.
    """

    def __init__(
        self, x: Any, y: Any = None, eps: float = 0.1, attack: Attack | None = None, loss: str | Loss = "cross_entropy",
        outputs: Output = None, batch_size: int = 256, weights: Tensor | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(x, y, loss, outputs, batch_size, weights)
        object.__setattr__(self, "attack", PGD(eps) if attack is None else attack)
        object.__setattr__(self, "seed", seed)

    attack: Attack
    seed: int

    def predict(self, net: Network, theta: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs on the attacked inputs of `rows`, and targets."""
        inputs, target = self.examples.take(rows, net.space.device)
        parameters = {name: value.detach() for name, value in net.space.unflatten(theta).items()}
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + int(rows[0]))

        def function(x: Tensor) -> Tensor:
            net.count(len(x), 1.0 if torch.is_grad_enabled() and x.requires_grad else FORWARD)
            return net.apply(parameters, x, self.outputs)

        with seeded(net.space.device, generator.initial_seed()):  # what an attack or a network draws by itself
            attacked = self.attack(function, inputs, target, generator, self._rows)
        return net(theta, attacked, self.outputs), target

    def _rows(self, y: Tensor, target: Tensor) -> Tensor:
        return (LOSSES[self.loss] if isinstance(self.loss, str) else self.loss)(y, target)

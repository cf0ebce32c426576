"""A loss over attacked data."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from isopath.attacks import PGD
from isopath.network import FORWARD, Network, Output
from isopath.objectives.task import LOSSES, Loss, Task


class Robust(Task):
    """The mean loss where every input is moved within a ball to where the network does worst: adversarial training.

    The attack is made anew at every point that is asked for, on the network there; its passes count as gradient
    evaluations. A trace's step makes it once, where the step begins: there the gradient is that of the worst case
    (Danskin), and the lengths along it are tried on the same moved inputs, a pass each instead of an attack. Scored
    like any task (`isopath.evaluate`, `isopath.along`), it gives robust loss and accuracy.

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
        self, x: Any, y: Any = None, eps: float = 0.1, attack: PGD | None = None, loss: str | Loss = "cross_entropy",
        outputs: slice | Output = None, batch_size: int = 256, weights: Tensor | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(x, y, loss, outputs, batch_size, weights)
        object.__setattr__(self, "attack", PGD(eps) if attack is None else attack)
        object.__setattr__(self, "seed", seed)
        object.__setattr__(self, "_moved", None)

    attack: PGD
    seed: int
    _moved: dict[int, Tensor] | None  # by its first row, each batch that a frozen step has attacked

    def freeze(self, step: int, seed: int) -> Robust:
        """The task on the batch of a step, attacked at the first point that is asked for."""
        frozen = super().freeze(step, seed)
        object.__setattr__(frozen, "_moved", {})
        return cast(Robust, frozen)

    def predict(self, net: Network, theta: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs on the attacked inputs of `rows`, and targets."""
        inputs, target = self.examples.take(rows, net.space.device)
        first = int(rows[0])
        moved = None if self._moved is None else self._moved.get(first)
        if moved is None:
            moved = self._attacked(net, theta, inputs, target, first)
            if self._moved is not None:
                self._moved[first] = moved
        return self._picked(net(theta, moved, self._output)), target

    def _attacked(self, net: Network, theta: Tensor, inputs: Tensor, target: Tensor, first: int) -> Tensor:
        parameters = {name: value.detach() for name, value in net.space.unflatten(theta).items()}
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + first)
        moved = self.attack(
            lambda x: self._picked(net.apply(parameters, x, self._output)), inputs, target, generator, self._rows
        )
        net.count(len(target), self.attack.evaluations + self.attack.restarts * FORWARD)
        return moved

    @property
    def _output(self) -> Output:
        return None if isinstance(self.outputs, slice) else self.outputs

    def _picked(self, y: Tensor) -> Tensor:
        return y[..., self.outputs] if isinstance(self.outputs, slice) else y

    def _rows(self, y: Tensor, target: Tensor) -> Tensor:
        return (LOSSES[self.loss] if isinstance(self.loss, str) else self.loss)(y, target)

"""Rows under attack: which of them are still classified right."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from isopath.attacks import PGD, AutoAttack, Victim, cross_entropy_rows
from isopath.attacks.autoattack import AutoAttackWarning
from isopath.attacks.ball import diameter


@dataclass(frozen=True, eq=False)
class Trial:
    """Rows, the network that judges them, and the attack of the protocol.

    Masks of rows are booleans `(N,)`.

    Attributes:
        x: inputs `(N, ...)`.
        y: labels `(N,)`.
        whole: the network that is judged.
        attack: PGD with its restarts.
        batch_size: rows in one pass.
        seed: of the random starts: each attack's own, whatever ran before it.
    """

    x: Tensor
    y: Tensor
    whole: Victim
    attack: PGD
    batch_size: int
    seed: int

    def right(self) -> Tensor:
        """The rows that are right without an attack."""
        batches = zip(self.x.split(self.batch_size), self.y.split(self.batch_size))
        return torch.cat([self.whole.right(x, y) for x, y in batches])

    def survivors(self, source: Victim, rows: Tensor) -> Tensor:
        """The rows that the whole gets right after each restart of PGD on `source`, of those in the mask `rows`.

        Each restart is judged by itself: the start with the highest cross-entropy need not be one that is classified
        wrong while another is. A row that one has broken is not attacked again.
        """
        alive, generator = rows.clone(), torch.Generator().manual_seed(self.seed)
        once = replace(self.attack, restarts=1)
        for _ in range(self.attack.restarts):
            for part in alive.nonzero().flatten().split(self.batch_size):
                if len(part):
                    attacked = once(source, self.x[part], self.y[part], generator)
                    alive[part] = self.whole.right(attacked, self.y[part])
        return alive

    def far(self, rows: Tensor, count: int) -> tuple[float, Tensor]:
        """The largest radius, and for the first `count` rows in the mask whether they survive PGD there, `(count,)`.

        It is the distance between the farthest two valid inputs; without bounds, what the inputs span. PGD starts at
        the inputs themselves: a random point of the whole range is often of another class whatever the gradients do.
        """
        a = self.attack
        low = float(self.x.min()) if a.low is None else a.low
        high = float(self.x.max()) if a.high is None else a.high
        radius = max(a.eps, diameter(a.norm, low, high, self.x))
        few = rows.nonzero().flatten()[:count]
        attack = replace(a, eps=radius, restarts=1, random=False)
        trial = replace(self, x=self.x[few], y=self.y[few], attack=attack)
        return radius, trial.survivors(self.whole, torch.ones_like(few, dtype=torch.bool))

    def officially(self, names: tuple[str, ...], rows: Tensor) -> tuple[Tensor, tuple[str, ...]]:
        """The rows that survive AutoAttack, of a mask of the first ones, and what the authors' code doubts.

        Raises:
            ImportError: pyautoattack is not installed.
        """
        a, generator = self.attack, torch.Generator().manual_seed(self.seed)
        assert a.low is not None and a.high is not None
        official, alive = AutoAttack(a.eps, a.norm, names, a.low, a.high), rows.clone()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", AutoAttackWarning)
            for part in rows.nonzero().flatten().split(self.batch_size):
                if len(part):
                    attacked = official(self.whole, self.x[part], self.y[part], generator)
                    alive[part] = self.whole.right(attacked, self.y[part])
        doubts: dict[str, str] = {}
        for warning in caught:
            if issubclass(warning.category, AutoAttackWarning):  # alike but for a number, one for each batch
                doubts.setdefault(re.sub(r"\d+", "", str(warning.message)), str(warning.message))
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        return alive, tuple(doubts.values())

    def without_gradient(self, rows: Tensor) -> tuple[int, int]:
        """At how many rows in the mask the gradient of the cross-entropy in the inputs is zero, and not finite."""
        flat = broken = 0
        for part in rows.nonzero().flatten().split(self.batch_size):
            if len(part):
                point = self.x[part].requires_grad_(True)
                with torch.enable_grad():
                    loss = cross_entropy_rows(self.whole(point), self.y[part]).sum()
                (gradient,) = torch.autograd.grad(loss, point)
                flat += int((gradient.flatten(1) == 0).all(1).sum())
                broken += int((~gradient.flatten(1).isfinite()).any(1).sum())
        return flat, broken

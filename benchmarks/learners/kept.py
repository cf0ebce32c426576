"""isopath's memory and optimiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import isopath as ip
from benchmarks.learners.learner import Learner, Stage


@dataclass(frozen=True)
class Columns:
    """Picks a task's outputs; of old classes alone: their distribution given that the class is an old one."""

    first: int | None
    last: int | None

    def __call__(self, returned: Tensor) -> Tensor:
        return returned[..., self.first : self.last]


class Kept(Learner):
    """`ip.optim.Invariant` over an `ip.Memory`: factors alone (no data are kept), examples, or both.

    With `merge`, one pair of factors per layer stands for all tasks: a Kronecker posterior with natural-gradient steps
    (as natural continual learning, Kao et al. 2021, arXiv 2106.08085). Where examples are kept their labels are learned
    again beside the new ones, and where tasks bring new classes, the new rows compete among the new classes only
    (Caccia et al. 2022, arXiv 2104.05025). Rows that are drawn from sketches of the tasks' inputs are replayed with
    the labels that they were drawn for.

    Settings: those of `ip.Memory` and `ip.optim.Invariant`, `replay` (weight of the kept labels), `even`
    (whether each old task has that weight, and all are averaged) and `drawn` (rows).
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        own = self.settings
        self.memory = ip.Memory(
            examples=own.get("drawn") or (self.rows if own.get("examples") else 0), factors=own.get("factors", True),
            choose="drawn" if own.get("drawn") else "random", sketch=own.get("sketch", (8, 24, 96)),
            merge=own.get("merge", False), rank=own.get("rank"), divergence=own.get("divergence", "kl"),
            measured=own.get("measured", 10_000), features=own.get("features", 0.0), samples=own.get("samples"),
        )  # fmt: skip
        self.heads: list[Columns] = []
        self.pool: tuple[Tensor, Tensor, Tensor] | None = None

    def begin(self, stage: Stage) -> None:
        super().begin(stage)
        parts = [(t.inputs, t.labels, torch.full((t.rows,), k)) for k, t in enumerate(self.memory.tasks) if t.rows]
        self.pool = tuple(map(torch.cat, zip(*parts))) if parts else None  # type: ignore[assignment]
        self.optimizer = ip.optim.Invariant(
            self.optimizer, self.model, self.memory, tolerance=None, strength=self.settings["strength"],
            damping=self.settings["damping"], refresh=200, renew=self.settings.get("renew", 1), batch_size=self.batch,
            steer_every=self.settings.get("steer_every", 1),
        )  # fmt: skip

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        assert self.stage is not None
        new, rows = self.stage.new, self._drawn()
        out = self.model(x)
        total = F.cross_entropy(out[:, new], y - new.start) if self.classes else super().loss(x, y)
        if rows is None or not self.settings.get("replay"):
            return total
        kept, labels, at = rows
        seen = self.model(kept)
        if self.classes:  # all classes so far, every task with the same weight
            old = F.cross_entropy(seen[:, : new.stop], labels)
            here = F.cross_entropy(out[:, : new.stop], y)
            return total + self.settings["replay"] * (self.number * old + here) / (self.number + 1)
        share, again = self.settings["replay"] / len(at), []
        for task in at.unique().tolist():
            own, head = at == task, self.heads[task]
            again.append(share * F.cross_entropy(head(seen[own]), labels[own], reduction="sum"))
        if self.settings.get("even"):
            return (total + self.number * sum(again)) / (1 + self.number)
        return sum(again, total)

    def evaluations(self, size: int) -> float:
        kept = sum(task.rows for task in self.memory.tasks)
        return size + min(self.batch, kept) * bool(self.settings.get("replay"))

    def _drawn(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Kept rows with labels, and the tasks they belong to."""
        if self.pool is None:
            return None
        x, y, at = self.pool
        rows = torch.randperm(len(x), generator=self.generator)[: self.batch]
        return x[rows], y[rows], at[rows]

    def end(self, stage: Stage) -> None:
        head = Columns(0, stage.new.stop) if self.classes else Columns(stage.columns.start, stage.columns.stop)
        self.heads.append(head)
        assert isinstance(self.optimizer, ip.optim.Invariant)
        self.spent += self.optimizer.network.evaluations  # what pulled, and metrics of rows
        self.memory = self.memory.remember(self.model, stage.x, stage.y, output=head)
        if self.memory.factors:  # a forward pass for the outputs, then one and a backward one for each of their columns
            measured = min(self.memory.measured, len(stage.x))
            self.spent += measured * (2 + 2 * self.memory.tasks[-1].columns) / 3
        kept = self.memory.tasks[-1]
        self.spent += (kept.rows if kept.drawn is None else int(kept.drawn.max()) + 1) / 3

    @property
    def bytes(self) -> int:
        return self.memory.bytes

"""Elastic weight consolidation, online."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.learners.learner import Learner, Stage, size_of

SAMPLED = 2000  # rows that the Fisher matrix is measured on


class EWC(Learner):
    """Online elastic weight consolidation (Schwarz et al. 2018): one running diagonal Fisher matrix, labels sampled.

    Settings: `strength` of the penalty.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.fisher = [torch.zeros_like(p) for p in self.model.parameters()]
        self.centre = [p.detach().clone() for p in self.model.parameters()]

    def adjust(self, x: Tensor, y: Tensor) -> None:
        for p, f, c in zip(self.model.parameters(), self.fisher, self.centre):
            if p.grad is not None:
                p.grad.add_(f * (p.detach() - c), alpha=self.settings["strength"])

    def end(self, stage: Stage) -> None:
        rows = torch.randperm(len(stage.x), generator=self.generator)[:SAMPLED]
        self.spent += len(rows)
        for row in rows.split(1):
            out = self.outputs(stage.x[row]).log_softmax(1)
            label = torch.multinomial(out.exp().detach(), 1, generator=self.generator)
            found = torch.autograd.grad(out.gather(1, label).sum(), list(self.model.parameters()))
            for f, g in zip(self.fisher, found):
                f.add_(g.square(), alpha=1 / len(rows))
        self.centre = [p.detach().clone() for p in self.model.parameters()]

    @property
    def bytes(self) -> int:
        return size_of(*self.fisher, *self.centre)

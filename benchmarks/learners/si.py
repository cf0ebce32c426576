"""Synaptic intelligence."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.learners.learner import Learner, Stage, size_of


class SI(Learner):
    """Synaptic intelligence (Zenke et al. 2017, arXiv 1703.04200): importances from each weight's path.

    Settings: `strength` c of the penalty, `floor` ξ under the squared displacement.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.parameters = list(self.model.parameters())
        self.importance = [torch.zeros_like(p) for p in self.parameters]
        self.centre = [p.detach().clone() for p in self.parameters]
        self.path = [torch.zeros_like(p) for p in self.parameters]

    def step(self, x: Tensor, y: Tensor) -> None:
        self.optimizer.zero_grad()
        self.loss(x, y).backward()
        plain = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self.parameters]
        before = [p.detach().clone() for p in self.parameters]
        for p, importance, centre in zip(self.parameters, self.importance, self.centre):
            if p.grad is not None:
                p.grad.add_(importance * (p.detach() - centre), alpha=2 * self.settings["strength"])
        self.optimizer.step()
        for path, p, start, gradient in zip(self.path, self.parameters, before, plain):
            path.sub_(gradient * (p.detach() - start))

    def end(self, stage: Stage) -> None:
        for importance, path, p, centre in zip(self.importance, self.path, self.parameters, self.centre):
            importance.add_(path.clamp_min(0) / ((p.detach() - centre).square() + self.settings["floor"]))
            path.zero_()
        self.centre = [p.detach().clone() for p in self.parameters]

    @property
    def bytes(self) -> int:
        return size_of(*self.importance, *self.centre)

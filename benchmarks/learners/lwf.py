"""Learning without forgetting."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.learners.learner import Learner, Stage, size_of


class LwF(Learner):
    """Learning without forgetting (Li & Hoiem 2016, arXiv 1606.09282): the old network's outputs on the new inputs.

    Settings: `strength` of the distillation, `temperature`.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.old: nn.Module | None = None
        self.heads: list[slice] = []

    def evaluations(self, size: int) -> float:
        return 4 / 3 * size  # a forward pass of the old network

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        out = self.model(x)
        assert self.stage is not None
        total = F.cross_entropy(out[:, self.stage.columns], y)
        if self.old is None:
            return total
        with torch.no_grad():
            target = self.old(x)
        heat = self.settings["temperature"]
        for head in self.heads:
            kept = (target[:, head] / heat).softmax(1)
            total = total - self.settings["strength"] * heat**2 * (
                kept * (out[:, head] / heat).log_softmax(1)
            ).sum(1).mean() / len(self.heads)
        return total

    def end(self, stage: Stage) -> None:
        self.old = copy.deepcopy(self.model).requires_grad_(False)
        if self.classes:  # one head over all the classes so far
            self.heads = [slice(0, stage.new.stop)]
        elif stage.columns not in self.heads:
            self.heads.append(stage.columns)

    @property
    def bytes(self) -> int:
        return size_of(*self.old.parameters()) if self.old is not None else 0

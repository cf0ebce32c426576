"""The published code of functionally invariant paths: a penalty on drift and normalised steps."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.learners.learner import Stage
from benchmarks.learners.replay import ER


class Penalty(ER):
    """Raghavan & Thomson 2022 (arXiv 2205.00334) as their code has it: no metric is computed.

    The loss of new rows plus `strength` times the Bhattacharyya distance -log Σ√(p p₀) on kept rows, whose labels are
    not read; every step has the length `rate`, falling with the base optimiser's schedule.
    """

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        assert self.stage is not None
        total, rows = super(ER, self).loss(x, y), self.drawn()
        if rows is None or self.number == 0:
            return total
        out = self.model(rows["x"])
        for task in rows["task"].unique().tolist():
            own, head = rows["task"] == task, self.heads[task]
            p, kept = (t[own][:, head].log_softmax(1) for t in (out, rows["out"]))
            total = total - self.settings["strength"] * (0.5 * (p + kept)).logsumexp(1).sum() / len(out)
        return total

    def adjust(self, x: Tensor, y: Tensor) -> None:
        found = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = torch.stack([g.norm() for g in found]).norm().clamp_min(1e-12)
        for g in found:
            g.div_(norm)

    def keep(self, x: Tensor, y: Tensor) -> None:
        """The rows are drawn at a task's end, when its outputs are worth keeping."""

    def end(self, stage: Stage) -> None:
        rows = torch.randperm(len(stage.x), generator=self.generator)[: self.rows]
        share = self.rows // (self.number + 1)
        with torch.no_grad():
            new = {"x": stage.x[rows], "y": stage.y[rows], "out": self.model(stage.x[rows])}
        new["task"] = torch.full_like(new["y"], self.number)
        tasks = {} if not self.kept else {t: self.kept["task"] == t for t in range(self.number)}
        parts = [{key: value[own][:share] for key, value in self.kept.items()} for own in tasks.values()]
        parts.append({key: value[: self.rows - share * self.number] for key, value in new.items()})
        self.kept = {key: torch.cat([part[key] for part in parts]) for key in new}
        self.seen = len(self.kept["x"])

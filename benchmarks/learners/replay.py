"""Methods that keep examples, drawn evenly from all that was seen (reservoir sampling)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.learners.learner import Learner, Stage, size_of


class ER(Learner):
    """Experience replay (Chaudhry et al. 2019, arXiv 1902.10486): the loss of kept rows joins that of new ones."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen = 0
        self.kept: dict[str, Tensor] = {}
        self.heads: list[slice] = []

    def begin(self, stage: Stage) -> None:
        super().begin(stage)
        self.heads.append(stage.columns)

    def step(self, x: Tensor, y: Tensor) -> None:
        super().step(x, y)
        self.keep(x, y)

    def evaluations(self, size: int) -> float:
        return size + min(self.batch, self.rows) + size / 3  # the outputs of rows that are kept

    def keep(self, x: Tensor, y: Tensor) -> None:
        """Offers a batch to the reservoir, with the outputs that it has now."""
        with torch.no_grad():
            out = self.model(x)
        rows = {"x": x, "y": y, "out": out, "task": torch.full_like(y, self.number)}
        if not self.kept:
            self.kept = {key: value.new_zeros((self.rows, *value.shape[1:])) for key, value in rows.items()}
        for i in range(len(x)):
            drawn = int(torch.randint(self.seen + 1, (1,), generator=self.generator))
            at = self.seen if self.seen < self.rows else drawn
            if at < self.rows:
                for key, value in rows.items():
                    self.kept[key][at] = value[i]
            self.seen += 1

    def drawn(self) -> dict[str, Tensor] | None:
        """A batch of kept rows; `None` while there are none."""
        count = min(self.seen, self.rows)
        if not count:
            return None
        rows = torch.randperm(count, generator=self.generator)[: self.batch]
        return {key: value[rows] for key, value in self.kept.items()}

    def replayed(self, rows: dict[str, Tensor]) -> Tensor:
        """The cross-entropy of kept rows, each over its own task's outputs."""
        return self.scored(self.model(rows["x"]), rows)

    def scored(self, out: Tensor, rows: dict[str, Tensor]) -> Tensor:
        """The same for given outputs."""
        total = out.new_zeros(())
        for task in rows["task"].unique().tolist():
            own = rows["task"] == task
            total = total + F.cross_entropy(out[own][:, self.heads[task]], rows["y"][own], reduction="sum")
        return total / len(out)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        rows = self.drawn()
        return super().loss(x, y) + (self.replayed(rows) if rows else 0)

    @property
    def bytes(self) -> int:
        return size_of(*(self.kept.get(key) for key in ("x", "y")))


class DERPP(ER):
    """Dark experience replay ++ (Buzzega et al. 2020, arXiv 2004.07211): kept rows keep their logits and labels.

    Settings: `alpha` of the squared distance of logits, `beta` of the labels, on a batch of its own.
    """

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        total, rows = Learner.loss(self, x, y), self.drawn()
        if rows:
            total = total + self.settings["alpha"] * F.mse_loss(self.model(rows["x"]), rows["out"])
            again = self.drawn()
            assert again is not None
            total = total + self.settings["beta"] * self.replayed(again)
        return total

    def evaluations(self, size: int) -> float:
        return super().evaluations(size) + min(self.batch, self.rows)

    @property
    def bytes(self) -> int:
        return super().bytes + size_of(self.kept.get("out"))


class AGEM(ER):
    """Averaged gradient episodic memory (Chaudhry et al. 2019, arXiv 1812.00420): no step against the kept rows."""

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return Learner.loss(self, x, y)

    def adjust(self, x: Tensor, y: Tensor) -> None:
        rows = self.drawn()
        if rows is None:
            return
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        kept = torch.autograd.grad(self.replayed(rows), parameters)
        inner = sum((p.grad * g).sum() for p, g in zip(parameters, kept))  # type: ignore[operator]
        if inner < 0:
            scale = inner / sum(g.square().sum() for g in kept)
            for p, g in zip(parameters, kept):
                p.grad.sub_(scale * g)  # type: ignore[union-attr]

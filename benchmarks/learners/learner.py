"""Plain fine-tuning, from which every method departs, and joint training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Settings = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Stage:
    """One task.

    Attributes:
        x, y, x_test, y_test: inputs and labels, which count from the first of `columns`.
        columns: the outputs that the task is trained and scored on.
        new: the outputs that no earlier task had.
    """

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor
    columns: slice
    new: slice


class Learner:
    """Plain fine-tuning: the protocol's optimiser on the current task alone.

    Args:
        model: trained in place.
        settings: `rate`, `optimizer` (if not the protocol's), `kept` (rows replayed in a step), and what a method adds.
        optimizer: builds the base optimiser from parameters and a rate.
        rows: examples that a method may keep in all.
        classes: whether each task brings new classes of a shared head.
    """

    def __init__(self, model: nn.Module, settings: Settings, optimizer: Any, rows: int, classes: bool) -> None:
        self.model, self.settings, self.build, self.rows, self.classes = model, settings, optimizer, rows, classes
        self.batch = settings.get("kept", 128)
        self.generator = torch.Generator().manual_seed(0)
        self.stage: Stage | None = None
        self.number = -1
        self.spent = 0.0  # gradient evaluations beside those of steps
        self.optimizer: torch.optim.Optimizer = self.base()

    def base(self) -> torch.optim.Optimizer:
        """A fresh base optimiser."""
        kind = self.settings.get("optimizer")
        found: torch.optim.Optimizer = self.build(self.model.parameters(), self.settings["rate"], kind)
        return found

    def begin(self, stage: Stage) -> None:
        """Before a task."""
        self.stage, self.number = stage, self.number + 1
        self.optimizer = self.base()

    def evaluations(self, size: int) -> float:
        """Gradient evaluations of a step on so many rows."""
        return size

    def outputs(self, x: Tensor) -> Tensor:
        """Logits of the current task's outputs."""
        assert self.stage is not None
        found: Tensor = self.model(x)[:, self.stage.columns]
        return found

    def step(self, x: Tensor, y: Tensor) -> None:
        """On one batch."""
        self.optimizer.zero_grad()
        self.loss(x, y).backward()
        self.adjust(x, y)
        self.optimizer.step()

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """What is lowered."""
        return F.cross_entropy(self.outputs(x), y)

    def adjust(self, x: Tensor, y: Tensor) -> None:
        """Changes the gradients."""

    def end(self, stage: Stage) -> None:
        """After a task, with its training data for the last time."""

    @property
    def bytes(self) -> int:
        """What is kept of old tasks."""
        return 0


def size_of(*tensors: Tensor | None) -> int:
    """Bytes."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)

"""CIFAR-10 at 16 x 16 (averaged over 2 x 2 pixels), two classes a task."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from benchmarks.connect import loaded
from benchmarks.learners.learner import Stage

HELD = 5000  # training images that settings are chosen on
SCENARIO = Literal["class", "task"]


def split(root: Path, scenario: SCENARIO, tasks: int, held: bool) -> list[Stage]:
    """Two classes a task, told apart among all ten (class) or by a head of their own (task)."""
    x, y = loaded(root, "cifar16", True)
    train, test = ((x[:-HELD], y[:-HELD]), (x[-HELD:], y[-HELD:])) if held else ((x, y), loaded(root, "cifar16", False))
    found = []
    for t in range(tasks):
        own = slice(2 * t, 2 * t + 2)
        parts = []
        for inputs, labels in (train, test):
            rows = (labels >= own.start) & (labels < own.stop)
            parts += [inputs[rows], labels[rows] - (0 if scenario == "class" else own.start)]
        found.append(Stage(*parts, slice(0, 10) if scenario == "class" else own, own))
    return found


def by_class(root: Path, seed: int, tasks: int, held: bool) -> list[Stage]:
    """Class-incremental."""
    return split(root, "class", tasks, held)


def by_task(root: Path, seed: int, tasks: int, held: bool) -> list[Stage]:
    """Task-incremental."""
    return split(root, "task", tasks, held)

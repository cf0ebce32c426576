"""Sequences of tasks: MNIST permuted, rotated or split, as the field has them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.learners.learner import Stage
from isopath.run import data as files

HELD = 5000  # training images that settings are chosen on
Pair = tuple[Tensor, Tensor]


@cache
def mnist(root: Path, held: bool) -> tuple[Pair, Pair]:
    """Training and test images `(N, 784)` with labels; the held-out training images in place of the test set."""
    (x, y), test = (_read(root, train) for train in (True, False))
    return ((x[:-HELD], y[:-HELD]), (x[-HELD:], y[-HELD:])) if held else ((x, y), test)


def _read(root: Path, train: bool) -> Pair:
    found = files.mnist(root, "MNIST", train)
    assert found.labels is not None
    return found.inputs.flatten(1), found.labels


def permuted(root: Path, seed: int, tasks: int, held: bool) -> list[Stage]:
    """The pixels in another order for each task, the first as they are."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.arange(784), *(torch.randperm(784, generator=generator) for _ in range(tasks - 1))]
    (x, y), (x_test, y_test) = mnist(root, held)
    everything = slice(0, 10)
    return [Stage(x[:, order], y, x_test[:, order], y_test, everything, everything) for order in orders]


def rotated(root: Path, seed: int, tasks: int, held: bool) -> list[Stage]:
    """Each task's images turned by an angle of its own, drawn evenly from [0°, 180°)."""
    generator = torch.Generator().manual_seed(seed)
    angles = (torch.rand(tasks, generator=generator) * torch.pi).tolist()
    (x, y), (x_test, y_test) = mnist(root, held)
    everything = slice(0, 10)
    return [Stage(_turned(x, a), y, _turned(x_test, a), y_test, everything, everything) for a in angles]


def _turned(x: Tensor, angle: float) -> Tensor:
    turn = torch.tensor(angle)
    matrix = torch.stack([turn.cos(), -turn.sin(), turn.new_zeros(()), turn.sin(), turn.cos(), turn.new_zeros(())])
    grid = F.affine_grid(matrix.reshape(1, 2, 3), [1, 1, 28, 28], align_corners=False)
    pieces = [
        F.grid_sample(part.reshape(-1, 1, 28, 28), grid.expand(len(part), -1, -1, -1), align_corners=False).flatten(1)
        for part in x.split(10_000)
    ]
    return torch.cat(pieces)


def split(scenario: Literal["class", "domain", "task"]) -> Callable[[Path, int, int, bool], list[Stage]]:
    """Two digits a task: told apart among all ten (class), as even or odd (domain), by a head of their own (task)."""

    def stages(root: Path, seed: int, tasks: int, held: bool) -> list[Stage]:
        found = []
        for t in range(tasks):
            own = slice(2 * t, 2 * t + 2)
            columns, new = {
                "class": (slice(0, 10), own), "task": (own, own), "domain": (slice(0, 2), slice(0, 2)),
            }[scenario]  # fmt: skip
            parts: list[Tensor] = []
            for x, y in mnist(root, held):
                rows = (y >= own.start) & (y < own.stop)
                parts += [x[rows], y[rows] - (0 if scenario == "class" else own.start)]
            found.append(Stage(*parts, columns, new))
        return found

    return stages

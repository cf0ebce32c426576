"""How good is a network, and how often do two agree?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isopath.arguments import check_kind, check_module
from isopath.examples import Examples
from isopath.network import Network, Output
from isopath.objectives import Task


@dataclass(frozen=True)
class Evaluation:
    """Scores of a network on a task.

    Attributes:
        loss: the mean loss.
        accuracy: the fraction of rows (or of entries, for several labels) predicted right; `None` for regression.
        rows: how many counted.
    """

    loss: float
    accuracy: float | None
    rows: int

    def __repr__(self) -> str:
        accuracy = "" if self.accuracy is None else f"accuracy={self.accuracy:.2%}, "
        return f"Evaluation({accuracy}loss={self.loss:.4g}, rows={self.rows})"


def evaluate(model: nn.Module, task: Task) -> Evaluation:
    """Loss and accuracy over every row of a task, in eval mode; the module is not modified.

    Args:
        model: any module.
        task: data and loss. Its batch size bounds the memory.
    """
    check_module(model, "what is evaluated", "of a path, a generator or a packing take one of its networks")
    check_kind(task, Task, "the second argument", "give ip.Task(x, y)")
    network = Network(model, lambda name: True)
    return evaluate_at(network, network.start, task)


def evaluate_at(network: Network, theta: Tensor, task: Task) -> Evaluation:
    """As `evaluate`, at a point of a network's weight space."""
    loss, right, rows, share = 0.0, 0.0, 0, 0.0
    with torch.no_grad():
        for part in torch.arange(len(task)).split(task.batch_size):
            y, target = task.predict(network, theta, part)
            value, weight = task.loss_of(y, target, part)
            loss, share = loss + float(value), share + weight
            found = hits(y, target, task.loss)
            if found is not None:
                right, rows = right + float(found.sum()), rows + found.numel()
    return Evaluation(loss / share, right / rows if rows else None, rows or len(task))


def hits(y: Tensor, target: Tensor, loss: Any) -> Tensor | None:
    """Right or wrong, of every row that counts; `None` where there is no such thing."""
    if loss == "bernoulli":
        return (y > 0) == (target > 0.5)
    if target.is_floating_point() or target.shape != y.shape[:-1]:
        return None
    counted = target != -100
    return (y.argmax(-1) == target)[counted]


def agreement(network: Network, a: Tensor, b: Tensor, inputs: Any, output: Output = None, rows: int = 512) -> float:
    """The fraction of rows on which two points of one network predict the same class."""
    examples, same, count = Examples.of(inputs), 0, 0
    with torch.no_grad():
        for part in torch.arange(len(examples)).split(rows):
            x, _ = examples.take(part, network.space.device)
            equal = network(a, x, output).argmax(-1) == network(b, x, output).argmax(-1)
            same, count = same + int(equal.sum()), count + equal.numel()
    return same / count

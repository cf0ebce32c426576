"""The protocols of continual learning: which tasks, which network, how each is trained."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from benchmarks.learners.learner import Stage
from benchmarks.tasks import cifar
from benchmarks.tasks.mnist import permuted, rotated, split


@dataclass(frozen=True)
class Protocol:
    """A sequence of tasks and how each is trained.

    Attributes:
        stages: the tasks, from data folder, seed, count and whether the held-out images stand in for the test set.
        tasks: how many.
        widths: of the perceptron.
        bias: whether its layers have biases.
        epochs, steps: of each task, one or the other.
        size: of a batch.
        optimizer: `"momentum"`: SGD with 0.9, `"sgd"`: without, `"adam"`.
        decay: whether the rate falls to zero over each task.
        examples: kept in all, by methods that keep any.
        classes: whether each task brings new classes of a shared head.
    """

    stages: Callable[[Path, int, int, bool], list[Stage]]
    tasks: int
    widths: tuple[int, ...]
    bias: bool = True
    epochs: int = 1
    steps: int | None = None
    size: int = 128
    optimizer: Literal["momentum", "sgd", "adam"] = "sgd"
    decay: bool = True
    examples: int = 200
    classes: bool = False

    @property
    def described(self) -> dict[str, object]:
        """What a result depends on, with the code of its tasks."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**found, "stages": self.stages.__qualname__.split(".")[0], "widths": list(self.widths)}

    def network(self, seed: int) -> nn.Module:
        """With the weights of a seed."""
        torch.manual_seed(seed)
        return self._layers()

    def _layers(self) -> nn.Sequential:
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(self.widths):
            layers += [nn.Linear(a, b, bias=self.bias), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def build(self, parameters: list[Tensor], rate: float, kind: str | None = None) -> torch.optim.Optimizer:
        """The base optimiser: the protocol's, or a kind that a method prefers."""
        kind = kind or self.optimizer
        if kind == "adam":
            return torch.optim.Adam(parameters, rate)
        return torch.optim.SGD(parameters, rate, momentum=0.9 if kind == "momentum" else 0.0)


@dataclass(frozen=True)
class Images(Protocol):
    """For images of 16 x 16 pixels: 3 x 3 convolutions of stride 2, then two linear layers.

    `widths` are the channels of the convolutions and the widths of the linear layers.
    """

    def _layers(self) -> nn.Sequential:
        channels, (hidden, outputs) = self.widths[:-2], self.widths[-2:]
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(channels):
            layers += [nn.Conv2d(a, b, 3, 2, 1), nn.ReLU()]
        side = 16 // 2 ** (len(channels) - 1)
        layers += [nn.Flatten(), nn.Linear(channels[-1] * side**2, hidden), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(hidden, outputs))


CIFAR: dict[str, Any] = {"tasks": 5, "widths": (3, 32, 64, 128, 64, 10), "epochs": 3, "size": 32, "examples": 500}
PROTOCOLS = {
    "permuted-10": Protocol(permuted, 10, (784, 100, 100, 10), bias=False, epochs=5, size=256, optimizer="momentum"),
    "permuted-20": Protocol(permuted, 20, (784, 100, 100, 10), optimizer="momentum"),
    "rotated-20": Protocol(rotated, 20, (784, 100, 100, 10), optimizer="momentum"),
    "split-class": Protocol(split("class"), 5, (784, 100, 100, 10), size=10, classes=True),
    "split-domain": Protocol(split("domain"), 5, (784, 400, 400, 2), steps=2000, optimizer="adam", decay=False),
    "split-task": Protocol(split("task"), 5, (784, 400, 400, 10), steps=2000, optimizer="adam", decay=False),
    "cifar-class": Images(cifar.by_class, classes=True, **CIFAR),
    "cifar-task": Images(cifar.by_task, **CIFAR),
}

"""One network that does what many do together."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from isopath.examples import Examples
from isopath.network import Output, pick
from isopath.network import _arguments as arguments_of
from isopath.objectives import Task

Module = TypeVar("Module", bound=nn.Module)
STEPS = 500  # at least, by default
Augment = Callable[[Any, torch.Generator], Any]


def distill(
    teacher: nn.Module,
    student: Module,
    data: Any,
    epochs: int | None = None,
    temperature: float = 2.0,
    rate: float = 1e-3,
    batch_size: int = 128,
    labels: float = 0.0,
    augment: Augment | None = None,
    output: Output = None,
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
    seed: int = 0,
) -> Module:
    """A network that is trained to give the outputs of another, of an ensemble say; no labels are needed.

    Goes down T² KL(softmax(t / T) ‖ softmax(s / T)), t the teacher's logits and s the student's (Hinton, Vinyals & Dean
    2015, arXiv 1503.02531), with Adam, its rate falling to zero along half a cosine. The student starts from its own
    weights, so a trained one begins where it stands and a fresh module fresh.

    Args:
        teacher: any module, an `Ensemble` say, in eval mode; it is not modified.
        student: any module with outputs of the same shape; it is not modified. It learns in train mode and comes back
            in the modes that it has.
        data: inputs as a tensor, a tuple or mapping, a `Dataset` or a `DataLoader`; or a `Task`, whose inputs are used.
        epochs: passes over the data; 5 by default, or as many as make 500 steps.
        temperature: T.
        rate: of Adam, at its highest.
        batch_size: rows per step.
        labels: share of the cross-entropy with the labels of a `Task` in the loss, in [0, 1].
        augment: new inputs from a batch's, `(inputs, generator) -> inputs`; teacher and student see the same. Without
            it the teacher's outputs are computed once.
        output: picks the output tensor of either (see `Network`).
        optimizer: from the student's parameters; Adam by default.
        seed: of the order of the rows, of what `augment` draws and of dropout.

    Raises:
        ValueError: a number is out of range, or the outputs differ in shape.
        TypeError: labels are wanted and the data are no task.
    """
    if min(1 if epochs is None else epochs, batch_size) < 1:
        raise ValueError(f"epochs and batch_size must be >= 1, got {epochs} and {batch_size}")
    if not (temperature > 0 and rate > 0 and 0 <= labels <= 1):
        raise ValueError(
            f"temperature and rate must be > 0 and labels in [0, 1], got {temperature}, {rate} and {labels}"
        )
    if labels and not isinstance(data, Task):
        raise TypeError(f"labels={labels} needs a Task to take them from, got {type(data).__name__}")
    examples = data.examples if isinstance(data, Task) else Examples.of(data, what="the data")
    module = copy.deepcopy(student)
    epochs = max(5, math.ceil(STEPS / math.ceil(len(examples) / batch_size))) if epochs is None else epochs
    lesson = _Lesson(teacher, module, examples, temperature, labels, augment, output, batch_size)
    make = optimizer or (lambda parameters: torch.optim.Adam(parameters, rate))
    modes = [child.training for child in module.modules()]
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())  # of dropout
        module.train()
        _learned(lesson, make([p for p in module.parameters() if p.requires_grad]), epochs, seed)
    for child, training in zip(module.modules(), modes):
        child.training = training
    return module


def _learned(lesson: _Lesson, optimizer: torch.optim.Optimizer, epochs: int, seed: int) -> None:
    generator, count = torch.Generator().manual_seed(seed), len(lesson.examples)
    per = math.ceil(count / lesson.batch_size)
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    for epoch in range(epochs):
        order = torch.randperm(count, generator=generator)
        for k, rows in enumerate(order.split(lesson.batch_size)):
            share = 0.5 * (1 + math.cos(math.pi * (epoch * per + k) / (epochs * per)))
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * share
            optimizer.zero_grad(set_to_none=True)
            loss = lesson(rows, generator)
            if not bool(loss.isfinite()):
                raise FloatingPointError(f"the loss is {float(loss)} in epoch {epoch}; lower rate=")
            loss.backward()
            optimizer.step()
    optimizer.zero_grad(set_to_none=True)


class _Lesson:
    """The loss of a student on some rows."""

    def __init__(
        self, teacher: nn.Module, student: nn.Module, examples: Examples, temperature: float, labels: float,
        augment: Augment | None, output: Output, batch_size: int,
    ) -> None:  # fmt: skip
        self.examples, self.temperature, self.labels = examples, temperature, labels
        self.teacher = copy.deepcopy(teacher).eval()
        self.student, self.augment, self.output, self.batch_size = student, augment, output, batch_size
        self.device = next(student.parameters()).device
        self._known = None if augment else self._outputs()

    def __call__(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        inputs, target = self.examples.take(rows, self.device)
        inputs = inputs if self.augment is None else self.augment(inputs, generator)
        wanted = self._of(self.teacher, inputs) if self._known is None else self._known[rows].to(self.device)
        y = self._of(self.student, inputs, grad=True)
        if y.shape != wanted.shape:
            raise ValueError(
                f"the student's outputs have shape {tuple(y.shape)}, the teacher's {tuple(wanted.shape)}; they must be "
                "equal"
            )
        loss = self._divergence(y, wanted)
        if not self.labels:
            return loss
        given = nn.functional.cross_entropy(y.flatten(0, -2), target.flatten())
        return (1 - self.labels) * loss + self.labels * given

    def _divergence(self, y: Tensor, wanted: Tensor) -> Tensor:
        t = self.temperature
        own, other = (y / t).log_softmax(-1), (wanted / t).log_softmax(-1)
        return t * t * (other.exp() * (other - own)).sum(-1).mean()

    def _of(self, module: nn.Module, inputs: Any, grad: bool = False) -> Tensor:
        args, kwargs = arguments_of(inputs)
        with torch.set_grad_enabled(grad):
            return pick(module(*args, **kwargs), self.output if not hasattr(module, "members") else None)

    def _outputs(self) -> Tensor:
        """The teacher's, on every row."""
        rows = torch.arange(len(self.examples)).split(self.batch_size)
        return torch.cat([self._of(self.teacher, self.examples.take(part, self.device)[0]).cpu() for part in rows])

"""One network that does what many do together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from isopath.arguments import check_count, check_module, check_numbers
from isopath.ensemble import Ensemble, class_axis
from isopath.examples import Examples, to
from isopath.generate.generator import SOFTMAX, classes_of
from isopath.network import Output, check_runs, copied, pick
from isopath.network import _arguments as arguments_of
from isopath.objectives import Task
from isopath.randomness import seeded

STEPS = 500  # at least, by default
Module = TypeVar("Module", bound=nn.Module)
Augment = Callable[[Any, torch.Generator], Any]
Divergence = Literal["kl", "squared_error"]


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
    divergence: Divergence = "kl",
    output: Output = None,
    dim: int | None = None,
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
    seed: int = 0,
) -> Module:
    """A network that is trained to give the outputs of another, of an ensemble say; no labels are needed.

    Goes down T² KL(softmax(t / T) ‖ softmax(s / T)), t the teacher's logits and s the student's (Hinton, Vinyals & Dean
    2015, arXiv 1503.02531), or ½ ‖t - s‖², with Adam, its rate falling to zero along half a cosine. The student starts
    from its own weights, so a trained one begins where it stands and a fresh module fresh.

    Args:
        teacher: any module, an `Ensemble` say, in eval mode; it is not modified.
        student: any module with outputs of the same shape; it is not modified. It learns in train mode and comes back
            in the modes that it has.
        data: inputs as a tensor, a tuple or mapping, a `Dataset` or a `DataLoader`; or a `Task`, whose inputs are used,
            and whose `outputs` where it has some.
        epochs: passes over the data; 5 by default, or as many as make 500 steps.
        temperature: T, of `"kl"`.
        rate: of Adam, at its highest.
        batch_size: rows per step.
        labels: share of the cross-entropy with the labels of a `Task` in the loss, in [0, 1].
        augment: new inputs from a batch's, `(inputs, generator) -> inputs`; teacher and student see the same. Without
            it the teacher's outputs are computed once.
        divergence: `"kl"` of the softmax outputs, or `"squared_error"`, for a regression.
        output: picks the output tensor of a network (see `Network`); an ensemble has its own. A task's by default.
        dim: the axis of the classes; by default that of an ensemble, 1 with a task whose loss is torch's own
            `cross_entropy`, as of a segmentation `(N, C, H, W)`, or else the last.
        optimizer: from the student's parameters; Adam by default.
        seed: of the order of the rows, of what `augment` draws and of dropout, a teacher's own too.

    Raises:
        ValueError: a number is out of range, the outputs differ in shape or have no classes, or nothing can be learned.
        TypeError: labels are wanted and the data are no task with classes.
        FloatingPointError: the loss is not finite.
    """
    check_module(teacher, "the teacher", "of a generator take .ensemble(n), of several networks ip.Ensemble(models)")
    check_module(student, "the student")
    _check(epochs, temperature, rate, batch_size, labels, divergence, data)
    examples = data.examples if isinstance(data, Task) else Examples.of(data, what="the data")
    if isinstance(data, Task):
        output = data.outputs if output is None else output
    dim = teacher.dim if dim is None and isinstance(teacher, Ensemble) else dim
    dim = classes_of(data) if dim is None and isinstance(data, Task) else dim
    example: Any = examples.take(torch.arange(min(2, len(examples))))[0]
    module = copied(student)
    learned = [p for p in module.parameters() if p.requires_grad]
    if not learned:
        raise ValueError(f"the student, {type(student).__name__}, has no trainable parameter; set requires_grad")
    modes = [child.training for child in module.modules()]
    epochs = max(5, math.ceil(STEPS / math.ceil(len(examples) / batch_size))) if epochs is None else epochs
    device = learned[0].device
    lesson = _Lesson(
        teacher=copied(teacher).eval(), student=module, examples=examples, device=device,
        temperature=temperature, labels=labels, augment=augment, divergence=divergence, output=output, dim=dim,
        task=data if labels else None,
    )  # fmt: skip
    for part in (lesson.teacher, module):
        check_runs(part, to(example, device), "the data")
    make = optimizer or (lambda parameters: torch.optim.Adam(parameters, rate))
    with seeded(device, seed), torch.enable_grad():
        lesson.prepare(batch_size)
        module.train()
        _learned(lesson, make(learned), epochs, batch_size, seed)
    for child, training in zip(module.modules(), modes):
        child.training = training
    return copied(module)  # without what it kept of the graph


def _check(
    epochs: int | None, temperature: float, rate: float, batch_size: int, labels: float, divergence: str, data: Any
) -> None:
    check_numbers(temperature=temperature, rate=rate, labels=labels)
    check_count(1 if epochs is None else epochs, "epochs")
    check_count(batch_size, "batch_size")
    if not (temperature > 0 and rate > 0 and 0 <= labels <= 1):
        raise ValueError(
            f"temperature and rate must be > 0 and labels in [0, 1], got {temperature}, {rate} and {labels}"
        )
    if divergence not in ("kl", "squared_error"):
        raise ValueError(f"divergence must be 'kl' or 'squared_error', got {divergence!r}")
    if labels and not (isinstance(data, Task) and data.loss in SOFTMAX):
        raise TypeError(f"labels={labels} needs a Task with classes to take them from, got {type(data).__name__}")


def _learned(lesson: _Lesson, optimizer: torch.optim.Optimizer, epochs: int, batch_size: int, seed: int) -> None:
    generator, count = torch.Generator().manual_seed(seed), len(lesson.examples)
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    total = epochs * len(_batches(torch.arange(count), batch_size))
    step = 0
    for epoch in range(epochs):
        for rows in _batches(torch.randperm(count, generator=generator), batch_size):
            share = 0.5 * (1 + math.cos(math.pi * step / total))
            for group, rate in zip(optimizer.param_groups, rates):
                group["lr"] = rate * share
            optimizer.zero_grad(set_to_none=True)
            loss = lesson(rows, generator)
            if not bool(loss.isfinite()):
                raise FloatingPointError(f"the loss is {float(loss.detach())} in epoch {epoch}; lower rate=")
            loss.backward()
            optimizer.step()
            step += 1
    optimizer.zero_grad(set_to_none=True)


def _batches(order: Tensor, size: int) -> Sequence[Tensor]:
    """Batches of rows; a last one of a single row joins the one before, as batch norm has no variance of one row."""
    parts = list(order.split(size))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


class _Lesson:
    """The loss of a student on some rows."""

    def __init__(
        self, *, teacher: nn.Module, student: nn.Module, examples: Examples, device: torch.device, temperature: float,
        labels: float, augment: Augment | None, divergence: str, output: Output, dim: int | None, task: Task | None,
    ) -> None:  # fmt: skip
        self.teacher, self.student, self.examples, self.device = teacher, student, examples, device
        self.temperature, self.labels, self.augment, self.divergence = temperature, labels, augment, divergence
        self.output, self.dim, self.task = output, dim, task
        self._known: Tensor | None = None

    def prepare(self, batch_size: int) -> None:
        """The teacher's outputs on every row, where inputs stay as they are."""
        if self.augment is None:
            parts = torch.arange(len(self.examples)).split(batch_size)
            known = [self._wanted(self.examples.take(rows, self.device)[0]).cpu() for rows in parts]
            self._known = torch.cat(known)

    def __call__(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        inputs, target = self.examples.take(rows, self.device)
        inputs = inputs if self.augment is None else self.augment(inputs, generator)
        wanted = self._wanted(inputs) if self._known is None else self._known[rows].to(self.device)
        y = self._of(self.student, inputs)
        if y.shape != wanted.shape:
            raise ValueError(
                f"the student's outputs have shape {tuple(y.shape)}, the teacher's {tuple(wanted.shape)}; they must be "
                "equal"
            )
        loss = (1 - self.labels) * self._away(y, wanted)
        if self.task is None or bool((target == -100).all()):
            return loss
        given, weight = self.task.loss_of(y, target, rows)
        return loss + self.labels * given / weight if weight else loss

    def _away(self, y: Tensor, wanted: Tensor) -> Tensor:
        if self.divergence == "squared_error":
            each = 0.5 * (y - wanted).square()
            return (each.sum(-1 if self.dim is None else self.dim) if each.ndim > 1 else each).mean()
        dim = class_axis(y.shape, self.dim)
        if y.shape[dim] == 1:
            raise ValueError('outputs of C = 1 have no classes to tell apart; use divergence="squared_error"')
        t = self.temperature
        own, other = (y / t).log_softmax(dim), (wanted / t).log_softmax(dim)
        never = other.isneginf()  # a class that the teacher rules out: 0 log 0 = 0
        apart = other.masked_fill(never, 0) - own.masked_fill(never, 0)
        return t * t * (other.exp() * apart).sum(dim).mean()

    def _wanted(self, inputs: Any) -> Tensor:
        with torch.no_grad():
            return self._of(self.teacher, inputs)

    def _of(self, module: nn.Module, inputs: Any) -> Tensor:
        args, kwargs = arguments_of(inputs)
        if not isinstance(module, Ensemble):
            return pick(module(*args, **kwargs), self.output)
        y: Tensor = module(*args, **kwargs)  # it picks its own; a part of its outputs it may leave to us
        return y[..., self.output] if isinstance(self.output, slice) and module.output is None else y

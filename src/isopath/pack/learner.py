"""The training of one task in the weights that it may write."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from isopath.network import _arguments as arguments_of
from isopath.network import pick
from isopath.objectives import Task
from isopath.pack.allocation import Pattern, best
from isopath.pack.owners import Masks

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
WARMUP = 0.02  # share of the steps over which the rate rises
POWER = 3  # weights go as 1 - (1 - t)³ (Zhu & Gupta 2017, arXiv 1710.01878)
LOOKS = 100  # how often weights go, over the whole training


class Learner:
    """Steps of a task's loss; what it may not write keeps its value to the bit.

    Args:
        module: that learns, in place and in the modes that it has: the body, perhaps with a stem and a head.
        weights: of the body, by name: those that tasks share out.
        free: where a task may write.
        task: the loss.
        steps: in all; the rate rises at first and falls to zero along half a cosine.
        optimizer: made for the parameters.
        seed: of the batches.
        rows: of the task that are learned; all by default.
    """

    def __init__(
        self, module: nn.Module, weights: Mapping[str, nn.Parameter], free: Masks, task: Task, steps: int,
        optimizer: MakeOptimizer, seed: int, rows: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.module, self.weights, self.task, self.steps, self.seed = module, weights, task, steps, seed
        self.live = {name: mask.clone() for name, mask in free.items()}
        self.rest = {name: p.detach() * ~self.live[name] for name, p in weights.items()}
        self.rows = torch.arange(len(task)) if rows is None else rows
        self._factors: dict[str, Tensor] = {}  # where it may write, as numbers
        self.step, self.loss = 0, math.nan
        self.scores: dict[str, Tensor] = {}
        self._make = optimizer
        self._optimizer = optimizer([p for p in module.parameters() if p.requires_grad])
        self._rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        self.device = next(iter(weights.values())).device
        self._order = torch.zeros(0, dtype=torch.int64)
        self._random = torch.Generator().manual_seed(seed).get_state(), None

    def to(self, step: int, scored: bool = False) -> None:
        """Learns up to a step.

        Args:
            step: to stop at.
            scored: whether |w ∂L/∂w| of each weight is summed on the way.
        """
        with self._dropout():
            while self.step < step:
                self._stepped(scored)

    @contextmanager
    def _dropout(self) -> Iterator[None]:
        """Random state of the learner's own, which goes on from one call to the next; the caller's is put back."""
        if self.device.type == "cpu":
            with torch.random.fork_rng(devices=[]):
                torch.set_rng_state(self._random[0])
                yield
                self._random = torch.get_rng_state(), None
            return
        backend = torch.get_device_module(self.device)
        with torch.random.fork_rng([self.device], device_type=self.device.type):
            torch.set_rng_state(self._random[0])
            if self._random[1] is None:
                backend.manual_seed(self.seed)
            else:
                backend.set_rng_state(self._random[1], self.device)
            yield
            self._random = torch.get_rng_state(), backend.get_rng_state(self.device)

    def shrink(self, start: int, end: int, share: float, pattern: Pattern, first: Masks | None = None) -> None:
        """Learns up to a step while weights go, the smallest first, until a share of each layer is left.

        Args:
            start: the step from which they go.
            end: the step at which the share is reached.
            share: of the weights of each layer.
            pattern: of what is left.
            first: weights that stay rather than others.
        """
        self.to(start)
        before = {name: float(mask.double().mean()) for name, mask in self.live.items()}
        every = max(1, self.steps // LOOKS)
        while True:
            t = 1.0 if self.step + every > end else (self.step + every - start) / max(1, end - start)
            left = {name: share + (most - share) * (1 - t) ** POWER for name, most in before.items()}
            self.cut({name: self._best(name, part, pattern, first) for name, part in left.items()})
            if t >= 1.0:
                break
            self.to(min(end, self.step + every))
        self.to(end)

    @property
    def magnitudes(self) -> dict[str, Tensor]:
        """|w| of each weight."""
        return {name: p.detach().abs() for name, p in self.weights.items()}

    def again(self, share: float) -> Learner:
        """As many steps more in the same module, with a new optimiser at a share of the rate."""

        def slower(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
            optimizer = self._make(parameters)
            for group in optimizer.param_groups:
                group["lr"] *= share
            return optimizer

        other = Learner(self.module, self.weights, self.live, self.task, self.steps, slower, self.seed + 1, self.rows)
        other.rest = self.rest
        return other

    def to_live(self, live: Masks) -> None:
        """May write these and no others, with the values that the module has."""
        self.live = {name: mask.clone() for name, mask in live.items()}
        self._factors.clear()

    def cut(self, live: Masks) -> None:
        """Only these may be written from now on; others of them are zero."""
        self.live = {name: mask & self.live[name] for name, mask in live.items()}
        self._factors.clear()
        self._held()

    def _best(self, name: str, share: float, pattern: Pattern, first: Masks | None) -> Tensor:
        score = self.weights[name].detach().abs()
        if first is not None:
            score = score + first[name] * (1 + score.max())
        return best({name: score}, self.live, share, pattern)[name]

    def _stepped(self, scored: bool) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        rows = self._batch()
        inputs, target = self.task.examples.take(rows, self.device)
        args, kwargs = arguments_of(inputs)
        y = outputs_of(self.task, self.module(*args, **kwargs))
        value, weight = self.task.loss_of(y, target, rows)
        loss = value / max(weight, 1e-12)
        loss.backward()
        self.loss = float(loss.detach())
        if not math.isfinite(self.loss):
            raise FloatingPointError(
                f"the loss is {self.loss} at step {self.step}; lower rate=, or give another optimizer="
            )
        if scored:
            for name, p in self.weights.items():
                if p.grad is not None:
                    score = (p.detach() * p.grad).abs() * self.live[name]
                    self.scores[name] = self.scores[name] + score if name in self.scores else score
        progress = self.step / self.steps
        share = min(1.0, (progress + 1 / self.steps) / WARMUP) * 0.5 * (1 + math.cos(math.pi * progress))
        for group, rate in zip(self._optimizer.param_groups, self._rates):
            group["lr"] = rate * share
        self._optimizer.step()
        self._held()
        self.step += 1

    @torch.no_grad()
    def _held(self) -> None:
        """What others own is what it was, and what has gone is zero, whatever the optimiser did."""
        for name, p in self.weights.items():
            if name not in self._factors:
                self._factors[name] = self.live[name].to(p.dtype)
            # not torch.where: over a mask of booleans it takes ten times as long, half of a step of a wide layer
            torch.addcmul(self.rest[name], p.data, self._factors[name], out=p.data)

    def _batch(self) -> Tensor:
        size = min(self.task.batch_size, len(self.rows))
        per = len(self.rows) // size
        epoch, place = divmod(self.step, per)
        if place == 0 or not len(self._order):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._order = self.rows[torch.randperm(len(self.rows), generator=generator)]
        return self._order[place * size :][:size]


def outputs_of(task: Task, returned: Any) -> Tensor:
    """The task's outputs in what a module returned."""
    # what a key or a callable picks is what the head is given
    given = task.head is not None and not isinstance(task.outputs, slice)
    return pick(returned, None if given else task.outputs)

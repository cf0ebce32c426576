"""As few weights as a task's own accuracy allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from isopath.evaluate.scores import hits
from isopath.network import _arguments as arguments_of
from isopath.objectives import Task
from isopath.pack.allocation import Pattern
from isopath.pack.learner import Learner, outputs_of

THINNED = 0.8  # of the weights that stay, after each round
ROUNDS = 25  # at most
PATIENCE = 1  # rounds in which what is left may recover
LAST = 0.85  # share of the steps that rounds take; what is left learns to the end


class Score(NamedTuple):
    """How good a task is: its accuracy, or its loss where there is no such thing."""

    kind: Literal["accuracy", "loss"]
    value: float

    def suffices(self, before: Score, tolerance: float) -> bool:
        """Whether it is as good as another within a tolerance: in accuracy, or as a share of the loss."""
        if self.kind == "accuracy":
            return self.value >= before.value - tolerance
        return self.value <= before.value + tolerance * abs(before.value)


def thinned(learner: Learner, task: Task, held: Tensor, tolerance: float, most: float) -> Mapping[str, Any]:
    """Takes weights out, round by round, while the task stays as good as it was within the tolerance.

    Args:
        learner: of a task that has learned; it ends with its smallest sub-network that was good enough.
        task: what it learns.
        held: rows that it does not learn from.
        tolerance: how much less accurate it may be than before, or by what share the loss may be higher.
        most: the share of the weights that it may have, however good it is.

    Returns:
        The scores on those rows, before and at the end.
    """
    before, good, pattern = score(learner, task, held), Snapshot.of(learner), Pattern()
    if before.kind == "accuracy":
        tolerance = max(tolerance, 1 / len(held) + 1e-9)
    share, failed = _share(learner), 0
    for k in range(1, ROUNDS + 1):
        forced = share > most + 1e-9
        if not failed or forced:
            share = max(share * THINNED, most) if forced else share * THINNED
            learner.shrink(learner.step, learner.step, share, pattern)
        learner.to(round(LAST * learner.steps * k / ROUNDS))
        failed = 0 if score(learner, task, held).suffices(before, tolerance) else failed + 1
        if forced:
            good, failed = Snapshot.of(learner), 0
        elif failed > PATIENCE:
            break
        elif not failed:
            good = Snapshot.of(learner)
    good.back(learner)
    learner.to(learner.steps)
    after = score(learner, task, held)
    if not after.suffices(before, tolerance):
        good.back(learner)
        after = score(learner, task, held)
    return {f"{before.kind}_before": before.value, f"{before.kind}_after": after.value, "rows_held": len(held)}


@torch.no_grad()
def score(learner: Learner, task: Task, rows: Tensor) -> Score:
    """Of these rows, in eval mode; the module's modes are as they were afterwards."""
    modes = [(child, child.training) for child in learner.module.modules()]
    learner.module.eval()
    right, seen, loss, weights = 0.0, 0, 0.0, 0.0
    for part in rows.split(task.batch_size):
        inputs, target = task.examples.take(part, learner.device)
        args, kwargs = arguments_of(inputs)
        y = outputs_of(task, learner.module(*args, **kwargs))
        value, weight = task.loss_of(y, target, part)
        loss, weights, found = loss + float(value), weights + weight, hits(y, target, task.loss)
        if found is not None:
            right, seen = right + float(found.sum()), seen + found.numel()
    for child, training in modes:
        child.training = training
    return Score("accuracy", right / seen) if seen else Score("loss", loss / max(weights, 1e-12))


class Snapshot:
    """A learner's module and live weights, to come back to.

    Args:
        state: of the module.
        live: where it may write.
    """

    def __init__(self, state: Mapping[str, Tensor], live: Mapping[str, Tensor]) -> None:
        self.state, self.live = state, live

    @classmethod
    def of(cls, learner: Learner) -> Snapshot:
        """As it is now."""
        state = {name: tensor.clone() for name, tensor in learner.module.state_dict().items()}
        return cls(state, {name: mask.clone() for name, mask in learner.live.items()})

    def back(self, learner: Learner) -> None:
        """As it was."""
        learner.module.load_state_dict(self.state)
        learner.to_live(self.live)


def _share(learner: Learner) -> float:
    live = list(learner.live.values())
    return sum(int(mask.sum()) for mask in live) / sum(mask.numel() for mask in live)

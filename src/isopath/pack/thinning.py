"""As few weights as a task's own accuracy allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from isopath.evaluate.scores import hits
from isopath.network import _arguments as arguments_of
from isopath.objectives import Task
from isopath.pack.allocation import Pattern
from isopath.pack.learner import Learner, outputs_of

FIRST = 0.3  # share of the steps before any weight goes
THINNED = 0.8  # of the weights that stay, after each round
ROUNDS = 25  # at most
PATIENCE = 1  # rounds in which what is left may recover
LAST = 0.15  # share of the steps after the last round


def thinned(learner: Learner, task: Task, held: Tensor, tolerance: float) -> Mapping[str, Any]:
    """Takes weights out, round by round, while the task stays as good as it was within the tolerance.

    Args:
        learner: of the task, which ends with its smallest sub-network that was good enough.
        task: what it learns.
        held: rows that it does not learn from.
        tolerance: how much less accurate it may be than before, or by what share the loss may be higher.

    Returns:
        The scores on those rows, before and at the end.
    """
    first, last = round(FIRST * learner.steps), round((1 - LAST) * learner.steps)
    learner.to(max(1, first))
    before, pattern = score(learner, task, held), Pattern()
    least = before - (tolerance if before >= 0 else tolerance * -before)
    good, share = Snapshot.of(learner), _share(learner)
    failed = 0
    for k in range(1, ROUNDS + 1):
        if not failed:
            share *= THINNED
            learner.shrink(learner.step, learner.step, share, pattern)
        learner.to(first + (last - first) * k // ROUNDS)
        failed = failed + 1 if score(learner, task, held) < least else 0
        if failed > PATIENCE:
            break
        good = good if failed else Snapshot.of(learner)
    good.back(learner)
    learner.to(learner.steps)
    after = score(learner, task, held)
    if after < least:
        good.back(learner)
        after = score(learner, task, held)
    kind = "accuracy" if before >= 0 else "loss"
    return {f"{kind}_before": abs(before), f"{kind}_after": abs(after), "rows_held": len(held)}


@torch.no_grad()
def score(learner: Learner, task: Task, rows: Tensor) -> float:
    """The accuracy on these rows, or minus the loss where there is no such thing."""
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
    learner.module.train()
    return right / seen if seen else -loss / max(weights, 1e-12)


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
        learner.live = {name: mask.clone() for name, mask in self.live.items()}


def _share(learner: Learner) -> float:
    live = list(learner.live.values())
    return sum(int(mask.sum()) for mask in live) / sum(mask.numel() for mask in live)

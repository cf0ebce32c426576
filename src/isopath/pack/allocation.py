"""Which of the free weights a task takes: the best of each layer, or of each group of m."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from isopath.pack.owners import FREE, Masks, Owners


@dataclass(frozen=True)
class Pattern:
    """`"unstructured"`, or `"n:m"`: n of every m neighbouring weights of an output for each task.

    Args:
        word: the pattern.

    Raises:
        ValueError: it is neither.
    """

    word: str = "unstructured"

    def __post_init__(self) -> None:
        stay, _, of = self.word.partition(":")
        if self.word != "unstructured" and not (stay.isdigit() and of.isdigit() and 0 < int(stay) < int(of)):
            raise ValueError(f"pattern must be 'unstructured' or 'n:m' with 0 < n < m, got {self.word!r}")

    @property
    def group(self) -> int:
        """m, or 0 where a whole layer is one group."""
        return int(self.word.partition(":")[2] or 0)

    @property
    def share(self) -> float | None:
        """n / m."""
        return int(self.word.partition(":")[0]) / self.group if self.group else None

    def rows(self, values: Tensor) -> Tensor:
        """The weights that compete with one another, a row for each group: `(1, size)`, or `(size / m, m)`."""
        return values.reshape(-1, self.group) if self.group else values.reshape(1, -1)

    def check(self, owners: Owners, transposed: Collection[str] = ()) -> None:
        """Raises ValueError where a layer's rows do not divide into groups, or lie across them as `transposed` ones."""
        for name, table in owners.table.items():
            if self.group and name in transposed:
                raise ValueError(
                    f"{name!r} is the weight of a transposed convolution, in which the weights of an output are no "
                    f"neighbours that {self.word} could count; leave it out with trainable=, or take "
                    "pattern='unstructured'"
                )
            per = table.numel() // table.shape[0]
            if self.group and per % self.group:
                raise ValueError(
                    f"{name!r} has {per} weights for each output, which {self.word} does not divide; leave it out "
                    "with trainable=, or take pattern='unstructured'"
                )

    def count(self, length: int, share: float) -> int:
        """How many weights of a group of `length` a share is: rounded down, so that shares that sum to 1 fit."""
        return math.floor(share * length + 1e-9)


def fits(owners: Owners, shares: Mapping[str, float], pattern: Pattern) -> None:
    """Raises ValueError where the shares of these tasks are out of range or more than what is free."""
    for name, share in shares.items():
        if not 0 < share <= 1:
            raise ValueError(f"the share of {name!r} must lie in (0, 1], got {share}")
    asked = sum(shares.values())
    if asked > owners.free + 1e-9:
        raise ValueError(
            f"{owners.free:.1%} of the weights are free, and asked for {', '.join(map(repr, shares))}: {asked:.1%}; "
            "give smaller shares, or pack fewer tasks"
        )
    for name, table in owners.table.items():
        rows = pattern.rows(table)
        for task, share in shares.items():
            if not pattern.count(rows.shape[1], share):
                raise ValueError(
                    f"a share of {share:.2%} is none of the {rows.shape[1]} weights of {name!r} that {task!r} would "
                    f"choose from; give at least {1 / rows.shape[1]:.2%}, or leave the layer out with trainable="
                )
        wanted = sum(pattern.count(rows.shape[1], share) for share in shares.values())
        least = int((rows == FREE).sum(1).min())
        if wanted > least:
            raise ValueError(
                f"{least} of {rows.shape[1]} neighbouring weights of {name!r} are free, and "
                f"asked for {', '.join(map(repr, shares))}: {wanted}; give smaller shares"
            )


def best(scores: Masks, among: Masks, share: float, pattern: Pattern) -> dict[str, Tensor]:
    """The weights of largest score, a share of each layer (or group), among those given."""
    found = {}
    for name, score in scores.items():
        rows = pattern.rows(torch.where(among[name], score, -torch.inf))
        count = min(max(1, pattern.count(rows.shape[1], share)), rows.shape[1])
        places = rows.topk(count, 1, sorted=False).indices
        mask = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, places, True)
        found[name] = mask.view_as(score) & among[name]
    return found


def drafted(
    scores: Sequence[Masks], among: Masks, shares: Sequence[float], pattern: Pattern
) -> list[dict[str, Tensor]]:
    """Disjoint masks for tasks that choose at the same time: each weight goes to the task that ranks it highest.

    A task whose share is full drops out, and the weights that it did not take go to the next that ranks them.

    Args:
        scores: of each task, by name.
        among: the weights that are free, the same for all.
        shares: of each task.
        pattern: of the weights that compete.
    """
    found: list[dict[str, Tensor]] = [{} for _ in scores]
    for name, free in among.items():
        open_ = pattern.rows(free)
        none = torch.zeros_like(free, dtype=torch.float64)  # of weights that no step has used
        ranks = torch.stack([_ranks(pattern.rows(own.get(name, none)), open_) for own in scores])
        counts = [pattern.count(open_.shape[1], share) for share in shares]
        for k, mask in enumerate(_draft(ranks, open_, counts)):
            found[k][name] = mask.view_as(free)
    return found


def _ranks(score: Tensor, among: Tensor) -> Tensor:
    """Each weight's place in its group, 0 to 1: the scores of different tasks have no common unit."""
    order = torch.where(among, score, -torch.inf).argsort(dim=1, stable=True).argsort(dim=1, stable=True)
    return order.double() / max(1, score.shape[1] - 1)


def _draft(ranks: Tensor, free: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Masks `(groups, length)` of each task, from ranks `(T, groups, length)`."""
    free, masks = free.clone(), [torch.zeros_like(free) for _ in counts]
    while True:
        need = torch.stack([count - mask.sum(1) for count, mask in zip(counts, masks)])  # (T, groups)
        if not bool(((need > 0) & free.any(1)).any()):
            return masks
        bids = ranks.masked_fill((need <= 0)[:, :, None], -1.0)
        winner = bids.argmax(0)
        for k, mask in enumerate(masks):
            own = torch.where(free & (winner == k), ranks[k], -1.0)
            order = own.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
            taken = (order < need[k].clamp_min(0)[:, None]) & (own >= 0)
            mask |= taken
            free &= ~taken

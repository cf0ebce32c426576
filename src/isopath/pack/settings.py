"""How tasks are packed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from isopath.arguments import check_numbers
from isopath.pack.allocation import Pattern
from isopath.pack.learner import MakeOptimizer

Score = Literal["magnitude", "saliency"]
Share = float | Literal["auto"] | Mapping[str, float]


@dataclass(frozen=True)
class Settings:
    """The arguments of `pack` that a packing repeats.

    Args:
        share: of the weights of each layer that a task gets, or `"auto"`, or a share for each task.
        reuse: whether a task reads the weights of the tasks before it.
        pattern: `"unstructured"` or `"n:m"`.
        epochs: over a task's rows; by default 5, or as many as make 500 steps.
        rate: of Adam, where no optimiser is given.
        score: by which tasks that choose together choose, `"magnitude"` or `"saliency"`.
        tolerance: with `"auto"`, how much less accurate a task may be than before any of its weights went.
        trainable: names or patterns of the parameters that tasks share out or own; all trainable ones by default.
        seed: of batches and of dropout.
        optimizer: makes one for the parameters; it is not saved.

    Raises:
        ValueError: a number is out of range.
    """

    share: Share
    reuse: bool = True
    pattern: str = "unstructured"
    epochs: float | None = None
    rate: float = 1e-3
    tolerance: float = 0.005
    trainable: tuple[str, ...] | None = None
    seed: int = 0
    optimizer: MakeOptimizer | None = None
    score: Score = "magnitude"

    def __post_init__(self) -> None:
        check_numbers(epochs=self.epochs, rate=self.rate, tolerance=self.tolerance)
        shares = list(self.share.values()) if isinstance(self.share, Mapping) else [self.share]
        numbers = [share for share in shares if isinstance(share, (int, float)) and not isinstance(share, bool)]
        if self.share != "auto" and not (len(numbers) == len(shares) > 0 and all(0 < share <= 1 for share in numbers)):
            raise ValueError(f"share must lie in (0, 1], for each task or for all, or be 'auto', got {self.share!r}")
        if not ((self.epochs is None or self.epochs > 0) and self.rate > 0 and self.tolerance >= 0):
            raise ValueError(
                f"epochs and rate must be > 0 and tolerance >= 0, got {self.epochs}, {self.rate} and {self.tolerance}"
            )
        if self.score not in ("magnitude", "saliency"):
            raise ValueError(f"score must be 'magnitude' or 'saliency', got {self.score!r}")
        given = Pattern(self.pattern).share
        if given is not None and any(abs(share - given) > 1e-9 for share in numbers):
            raise ValueError(f"{self.pattern} gives each task {given:g} of the weights, got share={self.share}")
        if given is not None and self.share == "auto":
            raise ValueError(f"{self.pattern} gives each task {given:g} of the weights: share='auto' has no choice")
        if callable(self.trainable):
            raise ValueError("trainable takes names or glob patterns here, no predicate: it is written with the file")
        if self.trainable is not None:
            names = (self.trainable,) if isinstance(self.trainable, str) else tuple(self.trainable)
            object.__setattr__(self, "trainable", names)

    def optimized(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser of a task."""
        return torch.optim.Adam(parameters, self.rate) if self.optimizer is None else self.optimizer(parameters)

    def saved(self) -> dict[str, Any]:
        """What a file keeps."""
        kept = asdict(replace(self, optimizer=None))
        kept.pop("optimizer")
        return kept

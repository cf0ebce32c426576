"""An accuracy on a few rows, and how far it may be from that on all."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.special import betaincinv
from torch import Tensor


@dataclass(frozen=True)
class Accuracy:
    """The fraction of rows that are right, with an exact interval.

    Attributes:
        right: how many rows are right.
        rows: of how many.
        confidence: of the interval.
    """

    right: int
    rows: int
    confidence: float = 0.95

    @classmethod
    def of(cls, right: Tensor, confidence: float) -> Accuracy:
        """That of rows `(N,)` of booleans."""
        return cls(int(right.sum()), len(right), confidence)

    @property
    def value(self) -> float:
        """right / rows, in [0, 1]; NaN where there is no row."""
        return self.right / self.rows if self.rows else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of Clopper & Pearson (1934) for the accuracy on the distribution that the rows are drawn from.

        It covers it with at least the confidence, at any number of rows. It speaks of the rows, not of the attack: a
        stronger attack may well find less than the lower end.
        """
        k, n, tail = self.right, self.rows, (1 - self.confidence) / 2
        low = float(betaincinv(k, n - k + 1, tail)) if k else 0.0
        high = float(betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0
        return low, high

    def __repr__(self) -> str:
        low, high = self.interval
        of = f"{self.right} of {self.rows}, {self.confidence:.0%}"
        return f"Accuracy({self.value:.1%}, {of}: {low:.1%} to {high:.1%})"

"""How a generator is built and trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from isopath.arguments import check_numbers

Start = Literal["nothing", "model"]
Schedule = Literal["constant", "falling", "rising"] | Callable[[float], float]
SHARES: dict[str, Callable[[float], float]] = {
    "constant": lambda t: 1.0,
    "falling": lambda t: 0.5 * (1 + math.cos(math.pi * t)),
    "rising": lambda t: min(1.0, 2 * t),
}


@dataclass(frozen=True)
class Settings:
    """What `isopath.generate` is asked for; see there.

    Raises:
        ValueError: a number is out of range, or a name unknown.
    """

    diversity: float = 0.5
    schedule: Schedule = "constant"
    start: Start = "nothing"
    latent: int = 64
    code: int = 16
    width: int = 128
    trunk: int = 256
    steps: int = 2000
    networks: int = 8
    rate: float = 1e-3
    patience: int | None = None
    permutations: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(diversity=self.diversity, rate=self.rate, patience=self.patience)
        if not (self.diversity >= 0 and math.isfinite(self.diversity)):
            raise ValueError(f"diversity must be >= 0 and finite, got {self.diversity}")
        if isinstance(self.schedule, str) and self.schedule not in SHARES:
            raise ValueError(f"schedule must be one of {', '.join(SHARES)} or a function, got {self.schedule!r}")
        if self.start not in ("nothing", "model"):
            raise ValueError(f"start must be 'nothing' or 'model', got {self.start!r}")
        for name in ("latent", "code", "width", "trunk", "steps", "networks"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number >= 1, got {value!r}")
        if self.networks < 2:
            raise ValueError(f"networks must be >= 2: diversity is a distance between them; got {self.networks}")
        if not (self.rate > 0 and math.isfinite(self.rate)):
            raise ValueError(f"rate must be > 0 and finite, got {self.rate}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be >= 1 steps or None, got {self.patience}")

    def weight(self, progress: float) -> float:
        """Of the entropy, at a share of the steps in [0, 1]."""
        share = SHARES[self.schedule] if isinstance(self.schedule, str) else self.schedule
        factor = float(share(progress))
        if not (factor >= 0 and math.isfinite(factor)):
            raise ValueError(f"schedule must give a finite factor >= 0, got {factor} at {progress:.3g} of the steps")
        return self.diversity * factor

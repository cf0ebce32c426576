"""The official AutoAttack, an optional dependency, with the call of `PGD`."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from isopath.attacks.ball import check_ball
from isopath.attacks.pgd import PGD, Norm, Rows, cross_entropy_rows

OFFICIAL = {"linf": "Linf", "l2": "L2"}
CLASSES = {"apgd-ce": 2, "apgd-dlr": 3, "apgd-t": 4, "fab": 2, "fab-t": 2, "square": 2}  # that each attack needs
TARGETS = 9  # of the targeted attacks, as in the official standard version
INSTALL = 'pip install "isopath[robust]"'


class AutoAttackWarning(UserWarning):
    """The authors' code doubts that its evaluation tells something: a random network, gradients that are zero ..."""


def installed() -> bool:
    """Whether the official implementation can be imported."""
    return find_spec("pyautoattack") is not None


@dataclass(frozen=True)
class AutoAttack:
    """Attacks of AutoAttack in the authors' own code (Croce & Hein 2020, arXiv 2003.01690), the package pyautoattack.

    They have no step size to choose: APGD halves its own wherever 100 steps make too little of it. As in the official
    standard version every attack has one start, targeted ones up to nine target classes, each attack sees only the
    rows that those before it have not broken, and what is returned differs from the inputs only where a row is broken.
    The authors' code works in float32.

    Args:
        eps: radius of the ball, in units of the inputs.
        norm: `"linf"` or `"l2"`.
        attacks: of `"apgd-ce"`, on the cross-entropy, `"apgd-t"`, on the targeted ratio of differences of logits
            (DLR; at least 4 classes), `"apgd-dlr"` (at least 3 classes), `"fab"`, `"fab-t"` and `"square"` (images
            `(N, C, H, W)` with H = W).
        low, high: range of valid inputs, which the authors' code needs; it is mapped onto theirs, [0, 1].

    Raises:
        ValueError: an unknown attack or norm, or no range.
    """

    eps: float
    norm: Norm = "linf"
    attacks: tuple[str, ...] = ("apgd-ce", "apgd-t")
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.norm not in OFFICIAL:
            raise ValueError(f"norm must be one of {list(OFFICIAL)}, got {self.norm!r}")
        unknown = [name for name in self.attacks if name not in CLASSES]
        if unknown or not self.attacks:
            raise ValueError(f"attacks must be some of {list(CLASSES)}, got {list(self.attacks)}")
        if self.low is None or self.high is None:
            raise ValueError(
                f"AutoAttack needs the range of valid inputs, got low={self.low} and high={self.high}; give both, or "
                "use PGD, which does without"
            )

    def __call__(
        self, function: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, generator: torch.Generator,
        loss: Rows = cross_entropy_rows,
    ) -> Tensor:  # fmt: skip
        """Inputs `(N, ...)` within the ball around `x`, moved where an attack breaks the row.

        Args:
            function: from inputs to outputs `(N, C)`, differentiable.
            x: inputs `(N, ...)`, of a floating type.
            y: labels `(N,)`.
            generator: draws the seed of the authors' code.
            loss: not read; the attacks have their own losses.

        Raises:
            ImportError: pyautoattack is not installed; the message says how to get it.
            TypeError, ValueError: as for `isopath.attack`, or an attack does not fit the classes or the inputs.
        """
        check_ball(self, x)
        width, shape = self.high - self.low, x.shape if x.ndim in (2, 4) else (len(x), x[0].numel())
        unit = ((x.detach() - self.low) / width).float().reshape(shape)  # their code adds an axis to inputs of three
        unit = unit.contiguous()  # and has views of inputs and gradients, so what goes either way is contiguous

        def theirs(z: Tensor) -> Tensor:
            return function((self.low + width * z.flatten(1).to(x.dtype)).reshape(-1, *x.shape[1:])).float()

        with torch.no_grad():
            classes = theirs(unit[:1]).shape[-1]
        self._check(classes, x)
        seed = int(torch.randint(2**31, (), generator=generator))
        with _kept():
            official = self._official(theirs, classes, seed, x.device)
            found, _ = official.run_standard_evaluation(unit, y, batch_size=len(x))
        # Rounding of the map from [0, 1] and of float32 may leave the ball, or move a row that is not broken
        moved = x.detach() + (width * (found - unit).to(x.dtype)).reshape(x.shape)
        return PGD(self.eps, norm=self.norm, low=self.low, high=self.high)._inside(moved, x.detach())

    def _check(self, classes: int, x: Tensor) -> None:
        short = [name for name in self.attacks if classes < CLASSES[name]]
        if short:
            raise ValueError(
                f"{short[0]} needs at least {CLASSES[short[0]]} classes, got outputs of {classes}; use "
                f"attacks={tuple(name for name in CLASSES if CLASSES[name] <= classes)} or some of them"
            )
        if "square" in self.attacks and not (x.ndim == 4 and x.shape[2] == x.shape[3]):
            raise ValueError(f"square needs images (N, C, H, W) with H = W, got {tuple(x.shape)}; leave it out")

    def _official(
        self, function: Callable[[Tensor], Tensor], classes: int, seed: int, device: torch.device
    ) -> Any:  # fmt: skip
        try:
            from pyautoattack import AutoAttack as Official
        except ImportError as error:
            raise ImportError(f"AutoAttack needs the package pyautoattack ({error}): {INSTALL}") from error
        made = Official(
            function, attacks=list(self.attacks), device=device, eps=self.eps / (self.high - self.low),
            norm=OFFICIAL[self.norm], seed=seed, version="custom",
        )  # fmt: skip
        made.logger = made.apgd.logger = made.apgd_targeted.logger = _Notes()
        # What the standard version sets, which the choice of attacks would otherwise lose
        made.apgd.n_restarts = made.fab.n_restarts = 1
        made.apgd_targeted.n_target_classes = made.fab.n_target_classes = min(TARGETS, classes - 1)
        return made


class _Notes:
    """Takes what the authors' code would log: its doubts become warnings, the rest is dropped."""

    def debug(self, text: str) -> None:
        """Progress."""

    info = debug

    def warning(self, text: str) -> None:
        """A doubt about the network or the evaluation; not that of too few classes, which is an error before."""
        if text.startswith("with only"):
            return
        warnings.warn(f"AutoAttack: {text.split(' See flags_doc')[0]}", AutoAttackWarning, stacklevel=2)


@contextmanager
def _kept() -> Iterator[None]:
    """Restores what the authors' code sets for the whole process: random states and the trace function."""
    # its seeding of CUDA reaches the current device wherever the inputs are
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    tracer = sys.gettrace()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        sys.settrace(tracer)

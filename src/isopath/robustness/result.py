"""What the protocol measured, together with the protocol."""

from __future__ import annotations

from dataclasses import dataclass

from isopath.attacks import PGD, Norm
from isopath.robustness.accuracy import Accuracy


@dataclass(frozen=True)
class Robustness:
    """Accuracies under attack, with the protocol that measured them; `str` is a table of both.

    A row that is wrong without an attack counts as wrong under each, and one that an attack reaches from any of its
    starts as well.

    Attributes:
        clean: without an attack.
        member: transferred: PGD on one member of an ensemble, judged on the whole; `None` for a network alone.
        surrogate: transferred: PGD on a network from outside, judged on the whole; `None` without one.
        white_box: PGD on the whole, one differentiable module.
        autoattack: white-box, the official AutoAttack on the whole; `None` where it was not run.
        worst: of each row over all of the above. Where AutoAttack saw the first rows alone, only they count.
        large: white-box PGD at `large_eps` from the inputs themselves, on a few rows that are right without an attack.
            It should be 0.
        flags: what looks like masked gradients, in words; empty where nothing does.
        attack: PGD as it was run: radius, steps, starts, norm, range of valid inputs.
        official: the attacks of AutoAttack that were run, or why none was.
        large_eps: the distance between the farthest two valid inputs; without bounds, what the inputs span.
        networks: how many members the whole has; 1 for a network alone.
        source: the member that was attacked for the transfer.
        evaluations: gradient evaluations, of one network on one row. A forward pass alone counts a third, a pass of an
            ensemble of M networks M times.
        seed: of all random starts.
    """

    clean: Accuracy
    member: Accuracy | None
    surrogate: Accuracy | None
    white_box: Accuracy
    autoattack: Accuracy | None
    worst: Accuracy
    large: Accuracy
    flags: tuple[str, ...]
    attack: PGD
    official: str
    large_eps: float
    networks: int
    source: int
    evaluations: float
    seed: int

    @property
    def eps(self) -> float:
        """Radius of the ball, in units of the inputs."""
        return self.attack.eps

    @property
    def norm(self) -> Norm:
        """Norm of the ball."""
        return self.attack.norm

    @property
    def rows(self) -> int:
        """N, how many rows were attacked."""
        return self.clean.rows

    @property
    def measured(self) -> dict[str, Accuracy | None]:
        """Every accuracy by its label, in the order of the table; `None` where AutoAttack was not run."""
        pgd = f"PGD-{self.attack.steps}, starts: {self.attack.restarts}"
        transfers = {
            f"transfer from member {self.source}, {pgd}": self.member,
            f"transfer from the surrogate, {pgd}": self.surrogate,
        }
        return {
            "clean": self.clean,
            **{label: score for label, score in transfers.items() if score is not None},
            f"white-box, {pgd}": self.white_box,
            f"white-box, official AutoAttack: {self.official}": self.autoattack,
            "worst case of each row over the above": self.worst,
            f"check, should be 0: white-box PGD at eps = {self.large_eps:.4g}": self.large,
        }

    def __repr__(self) -> str:
        official = "" if self.autoattack is None else f"autoattack={self.autoattack.value:.1%}, "
        return (
            f"Robustness(clean={self.clean.value:.1%}, white_box={self.white_box.value:.1%}, {official}"
            f"worst={self.worst.value:.1%}, eps={self.eps:g}, norm={self.norm!r}, rows={self.rows}, "
            f"networks={self.networks}, flags={len(self.flags)})"
        )

    def __str__(self) -> str:
        whole = f"an ensemble of {self.networks} networks as a whole" if self.networks > 1 else "one network"
        valid = f"[{self.attack.low}, {self.attack.high}]"
        width = max(map(len, self.measured))
        lines = (
            f"Robustness of {whole}: eps = {self.eps:g} ({self.norm}), inputs in {valid}, seed {self.seed}",
            f"{'':{width}}  accuracy  {f'{self.clean.confidence:.0%} interval':>16}   rows",
            *(_line(label, score, width) for label, score in self.measured.items()),
            f"gradient evaluations, of one network on one row: {self.evaluations:,.0f}",
            *(f"masked gradients? {flag}" for flag in self.flags or ("no sign of them",)),
        )
        return "\n".join(lines)


def _line(label: str, score: Accuracy | None, width: int) -> str:
    if score is None:
        return label
    low, high = score.interval
    return f"{label:{width}}  {score.value:8.1%}  {f'{low:.1%} to {high:.1%}':>16}  {score.rows:5}"

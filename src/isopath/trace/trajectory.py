"""The result of a trace: its kept waypoints, as a path."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, nn

from isopath.arguments import check_count, check_module
from isopath.ensemble import Ensemble
from isopath.geometry.reference import Keeping, Kept, KeptAll
from isopath.network import Network
from isopath.path import Path, PolyChain, check_unit
from isopath.storage import load_tensors
from isopath.trace.state import State
from isopath.trace.status import Status


@dataclass(frozen=True, eq=False)
class Waypoint:
    """A kept point of a trace, in memory or in a run folder.

    Attributes:
        step: accepted steps before it; 0 is the start.
        length: walked to it in weight space.
        drift: over the whole reference where that was evaluated, else as judged.
        objective: on its step's batch.
    """

    step: int
    length: float
    drift: float
    objective: float
    theta: Tensor | None = None
    file: FilePath | None = None

    def load(self, network: Network) -> Tensor:
        """Its point, `(P,)`."""
        if self.theta is not None:
            return self.theta
        assert self.file is not None
        tensors, _ = load_tensors(self.file)
        return network.space.flatten(tensors)

    def row(self) -> dict[str, Any]:
        """Its entry in the folder's index."""
        return {"step": self.step, "length": self.length, "drift": self.drift, "objective": self.objective}


@dataclass
class Keeper:
    """Keeps at most `count` waypoints as they come, thinned evenly by length; the first and the last always.

    Args:
        kept: what is kept, to evaluate a large reference whole at waypoints.
        tolerance: a waypoint whose whole drift exceeds it is not kept.
        count: how many, or `"all"`.
    """

    kept: KeptAll
    tolerance: float
    count: int | str = 32
    waypoints: list[Waypoint] = field(default_factory=list)
    refused: int = 0  # waypoints that the whole reference turned down
    evaluations: float = 0.0  # gradient evaluations spent on the whole reference
    _looked: tuple[int, float, float] | None = field(default=None, init=False, repr=False)  # step, length, whole drift

    def __post_init__(self) -> None:
        if self.count != "all" and (not isinstance(self.count, int) or self.count < 2):
            raise ValueError(f'keep_waypoints must be an integer >= 2 or "all", got {self.count!r}')

    def offer(self, state: State, last: bool = False) -> Waypoint | None:
        """Takes an accepted state if the spacing asks for it, or if it is the last; gives what was taken."""
        if self.waypoints and self.waypoints[-1].step == state.step and not last:
            return None
        if not last and self.waypoints and state.length - self.waypoints[-1].length < self._spacing():
            return None
        drift = state.drift
        if self.kept.kind == "sampled" or any(_sampled(part) for part in self.kept.parts):
            drift = self._whole_drift(state)
            if not drift <= self.tolerance:
                return None
        waypoint = Waypoint(state.step, state.length, drift, state.objective, state.theta)
        if self.waypoints and self.waypoints[-1].step == state.step:
            self.waypoints.pop()  # the same step after landing
        self.waypoints.append(waypoint)
        self._thin()
        return waypoint

    def _whole_drift(self, state: State) -> float:
        """Over the whole reference: evaluated, counted and, beyond the tolerance, refused once for each point."""
        if self._looked is None or self._looked[:2] != (state.step, state.length):
            network = state.network
            assert network is not None
            before = network.evaluations
            drift = self.kept.whole_drift(state.theta)
            self.evaluations += network.evaluations - before
            self.refused += not drift <= self.tolerance
            self._looked = state.step, state.length, drift
        return self._looked[2]

    def _spacing(self) -> float:
        if self.count == "all" or len(self.waypoints) < int(self.count):
            return 0.0
        return self.waypoints[-1].length / int(self.count)

    def _thin(self) -> None:
        if self.count == "all" or len(self.waypoints) <= int(self.count):
            return
        gaps = [b.length - a.length for a, b in zip(self.waypoints, self.waypoints[2:])]
        del self.waypoints[1 + min(range(len(gaps)), key=gaps.__getitem__)]


@dataclass(frozen=True, eq=False)
class Trajectory(Path):
    """A traced path: kept waypoints on t in [0, 1], the history of every attempt, and why it ended.

    Attributes:
        status: `"converged"`, `"stationary"`, `"budget_spent"`, `"step_too_small"` or `"target_not_reached"`.
        reason: a sentence: what happened, and what to try.
        drift: at the end.
        drift_kind: `"measured"` over the whole reference, `"sampled"` (controlled on a sample, evaluated whole at kept
            waypoints), `"estimated"` (of some task curvature alone is kept), or `"none"`.
        tolerance: the drift that was allowed.
        evaluations: gradient evaluations spent, those of a whole reference at waypoints included.
        seconds: wall time.
        history: a row per attempt, rejected ones too.
    """

    network: Network
    waypoints: Sequence[Waypoint]
    history: Sequence[dict[str, Any]]
    status: Status
    reason: str
    drift_kind: str
    tolerance: float
    evaluations: float
    seconds: float

    def __len__(self) -> int:
        """The number of kept waypoints."""
        return len(self.waypoints)

    @property
    def drift(self) -> float:
        """At the end."""
        return self.waypoints[-1].drift

    @property
    def steps(self) -> list[int]:
        """The step of each kept waypoint."""
        return [waypoint.step for waypoint in self.waypoints]

    def point(self, step: int | None = None) -> Tensor:
        """The point `(P,)` of a kept waypoint, the last by default.

        Raises:
            KeyError: that step was not kept; the message names the nearest one that was.
        """
        if step is None:
            return self.waypoints[-1].load(self.network)
        for waypoint in self.waypoints:
            if waypoint.step == step:
                return waypoint.load(self.network)
        nearest = min(self.steps, key=lambda kept: abs(kept - step))
        raise KeyError(f"step {step} was not kept; the nearest kept one is {nearest} (keep_waypoints=... keeps more)")

    def model(self, step: int | None = None) -> nn.Module:
        """A new module at a kept waypoint: the last by default, `step=0` for the start."""
        return self.network.model(self.point(step))

    def copy_to(self, model: nn.Module, step: int | None = None) -> None:
        """Writes a waypoint's weights into `model` in place, so that an existing optimiser goes on."""
        check_module(model, "what a waypoint is copied to")
        self.network.copy_to(self.point(step), model)

    def ensemble(self, count: int, since: float = 0.0, **options: Any) -> Ensemble:
        """Networks at kept waypoints, evenly spaced and the last included, as one: their mean probabilities.

        Every member is within the tolerance, which points between waypoints need not be.

        Args:
            count: how many, at least 1.
            since: the t from which on they lie; 0 is the start, a member then where there are more than one.
            options: of `Ensemble`.

        Raises:
            ValueError: fewer waypoints than that were kept there.
        """
        check_count(count, "count")
        whole, since = self.waypoints[-1].length, check_unit(since)
        there = [w for w in self.waypoints if w.length >= since * whole]
        if len(there) < count:
            raise ValueError(
                f"an ensemble of {count} needs as many waypoints from t = {since:g} on, got {len(there)} of the "
                f"{len(self)} kept ones; keep_waypoints=... keeps more"
            )
        chosen = [there[-1 - round(k * (len(there) - 1) / max(1, count - 1))] for k in reversed(range(count))]
        return Ensemble([self.network.model(w.load(self.network)) for w in chosen], **options)

    def __call__(self, t: float) -> Tensor:
        """The point at `t`, at constant speed by Euclidean length through the kept waypoints."""
        t = check_unit(t)
        lengths = torch.tensor([w.length for w in self.waypoints], dtype=torch.float64)
        if t in (0.0, 1.0) or len(self.waypoints) == 1 or not lengths[-1] > 0:
            return self.waypoints[0 if t == 0 else -1].load(self.network).clone()
        at = int(torch.searchsorted(lengths, t * float(lengths[-1]))) - 1
        at = min(max(at, 0), len(lengths) - 2)
        # two points at a time: with a run folder the others stay on disk
        a, b = (self.waypoints[i].load(self.network) for i in (at, at + 1))
        share = (t * float(lengths[-1]) - float(lengths[at])) / max(float(lengths[at + 1] - lengths[at]), 1e-300)
        return torch.lerp(a, b, share)

    def chain(self) -> PolyChain:
        """Its waypoints in memory."""
        return PolyChain([waypoint.load(self.network) for waypoint in self.waypoints])

    def _vertices(self, points: int) -> Sequence[Tensor]:
        return self.chain().points

    def save(self, folder: str | FilePath) -> FilePath:
        """Writes it as a run folder; see `Trajectory.load`.

        Raises:
            FileExistsError: the folder is there already.
        """
        from isopath.trace.record import Record  # a record reads trajectories back

        return Record.save(self, FilePath(folder))

    @staticmethod
    def load(folder: str | FilePath, model: nn.Module) -> Trajectory:
        """A saved trajectory, its waypoints left on disk.

        Args:
            folder: a run folder.
            model: a module of the architecture that was traced; its weights do not matter.
        """
        from isopath.trace.record import Record

        return Record.load(FilePath(folder), model)

    def __repr__(self) -> str:
        return (
            f"Trajectory({self.status}: {self.reason} steps={self.steps[-1]}, drift={self.drift:.3g} of "
            f"{self.tolerance:g} {self.drift_kind}, evaluations={self.evaluations:.3g}, seconds={self.seconds:.1f})"
        )


def _sampled(part: Keeping) -> bool:
    """Whether a reference has more rows than are looked at on the way, whatever its drift is called."""
    return isinstance(part, Kept) and len(part.reference) > part.reference.sample

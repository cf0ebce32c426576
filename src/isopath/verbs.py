"""The verbs that a user types: they bind the parts together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from isopath.geometry.estimated import kept_by
from isopath.geometry.memory import Memory
from isopath.geometry.reference import Kept, Reference, References
from isopath.network import Network
from isopath.objectives import Objective, Robust, Sparsity, as_objective
from isopath.objectives.objective import Scalar
from isopath.run.progress import shown
from isopath.space import Trainable
from isopath.storage import DamagedFile
from isopath.trace.compensation import Compensation
from isopath.trace.controller import Backtracking
from isopath.trace.corrector import GaussNewton
from isopath.trace.direction import Direction, NaturalGradient
from isopath.trace.lagrangian import Lagrangian, Multiplier
from isopath.trace.record import Record, about
from isopath.trace.recovery import Recovery
from isopath.trace.sparsifier import Sparsifier
from isopath.trace.state import State
from isopath.trace.tracer import Tracer
from isopath.trace.trajectory import Keeper, Trajectory

Corrector = GaussNewton | Multiplier | Recovery | Compensation | None
OBJECTIVES_OWN = GaussNewton()  # left as it is: the one that suits the objective


def trace(
    model: nn.Module,
    keep: Reference | References | Memory | None,
    objective: Objective | Scalar,
    tolerance: float = 0.01,
    max_steps: int = 200,
    seed: int = 0,
    *,
    trainable: Trainable = None,
    direction: Direction | None = None,
    corrector: Corrector = OBJECTIVES_OWN,
    controller: Backtracking | None = None,
    max_evaluations: float | None = None,
    keep_waypoints: int | str = 32,
    run: str | Path | None = None,
    resume: bool = False,
    progress: bool = False,
) -> Trajectory:
    """Moves a network through weight space towards an objective while its outputs on a reference stay put.

    Every accepted waypoint has drift at most `tolerance`. There is no learning rate: the controller finds the steps
    (with a `Multiplier` as corrector there is one).
    Numerically it is continuation: a predictor along -(I + G/μ)⁻¹∇L, with G the metric pulled back from the kept
    outputs, and a Gauss-Newton corrector on the drift (Raghavan & Thomson, arXiv 2205.00334, is the idea;
    docs/how-it-works.md the mathematics).

    Args:
        model: any module; it is not modified, and nothing done to it later changes the path: what does not move is
            copied too. Eval mode is used, and dropout is off.
        keep: a reference, a sum of them, a memory, or `None` to keep nothing. Of a task whose rows are not kept the
            drift is estimated from its curvature (`drift_kind` says so).
        objective: what is wanted: `Task`, `Robust`, `Sparsity`, `Toward`, `Diversity`, their sums and multiples, or
            any callable `(net, theta) -> scalar`.
        tolerance: the largest mean divergence of the kept outputs. For the default divergence, 0.01 keeps about 99 %
            of predictions.
        max_steps: accepted steps at most; of a path along the sparsity, rounds.
        seed: of the reference's split and the objective's batches. The same seed gives the same bits.
        trainable: the parameters that move, by name, glob pattern or predicate; all trainable ones by default.
        direction: `NaturalGradient()` by default, `NullSpace()` or `Penalised()`; a `Multiplier` has its own.
        corrector: `GaussNewton()`; where the objective is a `Sparsity` alone, `Recovery()`, or `Compensation()` where
            there are few rows and no loop is wanted; where it is a `Robust`, `Multiplier()`, which suits any objective
            of noisy batches; `None` for no correction.
        controller: step lengths; `Backtracking()` by default.
        max_evaluations: gradient evaluations at most, but for the attempt in which they are spent and what it takes to
            measure kept waypoints on the whole of a reference larger than its `sample`.
        keep_waypoints: how many points of the path to keep, or `"all"`.
        run: a folder to record in; the waypoints then live there. It must not exist.
        resume: go on with the run in that folder, which must have been started with the same arguments.
        progress: show a progress bar.

    Returns:
        The path, with status, reason, history and kept waypoints.

    Raises:
        ValueError, TypeError: an argument is wrong; the message says what was expected.
        FileExistsError: the run folder exists and `resume` is false.
    """
    network = Network(model, trainable, own=True)
    budget = max_steps, max_evaluations
    tracer = _tracer(network, keep, objective, seed, tolerance, budget, direction, corrector, controller)
    keeper = Keeper(tracer.kept, tolerance, keep_waypoints)
    record, state, history, elapsed = _opened(run, resume, tracer, keeper)
    return _follow(tracer, keeper, record, state, history, elapsed, progress)


def steps(
    model: nn.Module,
    keep: Reference | References | Memory | None,
    objective: Objective | Scalar,
    tolerance: float = 0.01,
    max_steps: int = 200,
    seed: int = 0,
    *,
    trainable: Trainable = None,
    direction: Direction | None = None,
    corrector: Corrector = OBJECTIVES_OWN,
    controller: Backtracking | None = None,
    max_evaluations: float | None = None,
) -> Iterator[State]:
    """As `trace`, but hands over every attempt: drive the path yourself and leave when you like.

    Yields:
        `State`: `.accepted`, `.theta`, `.drift`, `.objective`, `.step`, `.status`, `.model()`. The first is the start.
    """
    network = Network(model, trainable, own=True)
    budget = max_steps, max_evaluations
    tracer = _tracer(network, keep, objective, seed, tolerance, budget, direction, corrector, controller)
    return tracer.iterate()


def _tracer(
    network: Network,
    keep: Reference | References | Memory | None,
    objective: Objective | Scalar,
    seed: int,
    tolerance: float,
    budget: tuple[int, float | None],
    direction: Direction | None,
    corrector: Corrector,
    controller: Backtracking | None,
) -> Tracer:
    max_steps, max_evaluations = budget
    sparse = isinstance(objective, Sparsity)
    if isinstance(corrector, (Recovery, Compensation)) and not sparse:
        raise TypeError(
            f"{type(corrector).__name__} corrects a trace whose only objective is a Sparsity; leave corrector= as it is"
        )
    if isinstance(corrector, Multiplier) and sparse:
        raise TypeError(
            "a Sparsity alone is corrected by Recovery or Compensation, not by Multiplier; leave corrector= as it is"
        )
    if corrector is OBJECTIVES_OWN and isinstance(objective, Robust):
        corrector = Multiplier()
    kind: type[Tracer] = Tracer
    own: dict[str, Any] = {"corrector": corrector}
    if sparse:
        kind, own = Sparsifier, {"recovery": Recovery() if isinstance(corrector, GaussNewton) else corrector}
        if isinstance(corrector, Compensation):
            own = {"recovery": None, "compensation": corrector}
    elif isinstance(corrector, Multiplier):
        kind, own = Lagrangian, {"multiplier": corrector}
    return kind.of(
        network,
        kept_by(keep, network, seed) if isinstance(keep, Memory) else keep,
        as_objective(objective),
        seed,
        tolerance=tolerance,
        max_steps=max_steps,
        max_evaluations=max_evaluations,
        direction=direction or NaturalGradient(),
        controller=controller or Backtracking(),
        **own,
    )


def _opened(
    run: str | Path | None, resume: bool, tracer: Tracer, keeper: Keeper
) -> tuple[Record | None, State | None, list[dict[str, Any]], float]:
    """The run's record and, where it goes on, the state, history and seconds that it goes on from."""
    if run is None:
        if resume:
            raise ValueError("resume=True needs run=, the folder of the run to go on with")
        return None, None, [], 0.0
    if resume:
        record = Record(Path(run))
        if not (record.folder / "checkpoint.safetensors").exists():
            raise FileNotFoundError(f"{run} has no checkpoint to go on from; start it again under another name")
        state, history, seconds = record.resume(tracer.network, keeper)
        return record, state, history, seconds
    described = {
        "verb": "trace",
        "seed": tracer.seed,
        "tolerance": tracer.tolerance,
        "max_steps": tracer.max_steps,
        "split": [[p.metric_part.rows, p.check_part.rows, p.split] for p in tracer.kept.parts if isinstance(p, Kept)],
        **about(tracer.network),
    }
    return Record.create(Path(run), described), None, [], 0.0


def _follow(
    tracer: Tracer,
    keeper: Keeper,
    record: Record | None,
    start: State | None,
    history: list[dict[str, Any]],
    elapsed: float,
    progress: bool,
) -> Trajectory:
    """Runs the tracer to its end, keeping and recording."""
    began, saved = time.perf_counter() - elapsed, float("-inf")
    resumed = start is not None

    def keep(state: State, last: bool = False) -> None:
        taken = keeper.offer(state, last)
        if record and taken is not None and taken in keeper.waypoints:
            keeper.waypoints[keeper.waypoints.index(taken)] = record.waypoint(taken, tracer.network)

    for i, state in enumerate(shown(tracer.iterate(start), tracer, progress)):
        now = time.perf_counter()
        if i > 0:
            history.append({**state.row(), "seconds": round(now - began, 3)})
            if record:
                record.attempt(history[-1])
        if not (resumed and i == 0) and state.accepted:
            keep(state, last=False)
        # A state is clean when nothing but itself decides what comes next: the metric is about to be built anew
        clean = state.frame is None and state.ready is None and state.status == "running"
        if record and clean and now - saved > 1.0:
            record.checkpoint(state, keeper, now - began)
            saved = now
    if not (start is not None and start.status != "running"):  # else it ended before, with its last waypoint
        keep(state, last=True)
    trajectory = Trajectory(
        tracer.network,
        tuple(keeper.waypoints),
        history,
        state.status,
        state.reason + _refusals(keeper),
        tracer.kept.kind,
        tracer.tolerance,
        state.evaluations + keeper.evaluations,
        time.perf_counter() - began,
    )
    if record:
        record.checkpoint(state, keeper, trajectory.seconds)
        record.finish(trajectory)
    return trajectory


def _refusals(keeper: Keeper) -> str:
    if not keeper.refused:
        return ""
    return (
        f" {keeper.refused} waypoints were within the tolerance on the sampled rows and beyond it on the whole "
        "reference; they were not kept. A larger sample= makes that rarer."
    )


__all__ = ["DamagedFile", "steps", "trace"]

"""What a finished trace is worth: its table, accuracy along the way, the metric's spectrum, and the path in a plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from isopath.evaluate import agreement, evaluate_at
from isopath.geometry.estimated import kept_by
from isopath.geometry.kinds import metric_of
from isopath.geometry.memory import Memory
from isopath.geometry.reference import Reference, References
from isopath.objectives import Task, sparsity
from isopath.run.job import Job
from isopath.trace.direction import NaturalGradient
from isopath.trace.tracer import bind
from isopath.trace.trajectory import Trajectory

HELD = 2**28  # numbers of waypoints in memory at once, at most


def findings(job: Job, path: Trajectory) -> dict[str, Any]:
    """What `metrics.json` holds of a finished trace beside its summary: table, along, spectrum and plane."""
    found: dict[str, Any] = {"table": table(job, path)}
    if job.tasks:
        found["along"] = along(path, job.tasks)
    keep = job.arguments["keep"]
    if keep is not None and not (isinstance(keep, Memory) and not len(keep)):
        found["spectrum"] = spectrum(job, path)
    if len(path) > 1:
        found["plane"] = plane({"isopath trace": _points(path)})
    return found


def table(job: Job, path: Trajectory) -> dict[str, Any]:
    """The start and the end of the path, side by side: fractions, `None` where a figure means nothing."""
    start, end = path.point(0), path.point()
    spent = [path.evaluations, path.seconds, path.status]
    rows = [
        ["start", *_figures(job, path, start, 0.0), None, None, None],
        ["isopath trace", *_figures(job, path, end, path.drift), *spent],
    ]
    scores = [f"{name} accuracy" for name in job.tasks]
    columns = ["method", *scores, "drift", "agreement", "sparsity", "gradient evaluations", "seconds", "status"]
    return {"columns": columns, "rows": rows}


def _figures(job: Job, path: Trajectory, theta: Tensor, drift: float) -> list[float | None]:
    same = _agreement(job, path, path.point(0), theta)
    return [*_scores(path, theta, job.tasks), drift, same, sparsity(path.network.space, theta)]


def _scores(path: Trajectory, theta: Tensor, tasks: Mapping[str, Task]) -> list[float | None]:
    return [evaluate_at(path.network, theta, task).accuracy for task in tasks.values()]


def _agreement(job: Job, path: Trajectory, start: Tensor, end: Tensor) -> float | None:
    """How often the two predict the same class on the kept inputs; `None` where outputs are no classes."""
    keep = job.arguments["keep"]
    keep = keep.references() if isinstance(keep, Memory) else keep
    parts: Sequence[Reference] = keep.parts if isinstance(keep, References) else [] if keep is None else [keep]
    if not parts or any(part.divergence in ("bernoulli", "squared_error", "cosine") for part in parts):
        return None
    shares = [agreement(path.network, start, end, part.inputs, part.output) * len(part) for part in parts]
    return sum(shares) / sum(map(len, parts))


def along(path: Trajectory, tasks: Mapping[str, Task]) -> dict[str, Any]:
    """The accuracy on every task at every kept waypoint."""
    rows = [_scores(path, path.point(step), tasks) for step in path.steps]
    series = {name: list(values) for name, values in zip(tasks, zip(*rows)) if None not in values}
    return {"step": path.steps, "series": series}


def spectrum(job: Job, path: Trajectory, count: int = 50) -> list[float]:
    """The metric's largest eigenvalues at the end, on the rows that steered the path, or of kept curvature."""
    theta, direction, keep = path.point(), job.arguments["direction"], job.arguments["keep"]
    kind = getattr(direction, "metric", "kronecker")
    found = kept_by if isinstance(keep, Memory) else bind
    kept = found(keep, path.network, job.arguments["seed"])
    if kept.curvatures:
        metric = NaturalGradient().frame(path.network, theta, kept.batches, kept.curvatures).metric
    else:
        metric = metric_of("kronecker" if kind == "identity" else kind, path.network, theta, kept.batches)
    return [value for value in metric.spectrum(count).tolist() if value > 0]


def _points(path: Trajectory) -> list[Tensor]:
    """The kept waypoints, thinned evenly where memory would not hold them all."""
    most = max(2, min(len(path), HELD // path.network.space.dimension))
    chosen = [round(i * (len(path) - 1) / (most - 1)) for i in range(most)]
    return [path.point(path.steps[i]) for i in dict.fromkeys(chosen)]


def plane(paths: Mapping[str, Sequence[Tensor]]) -> dict[str, Any]:
    """Paths on the first two principal components of all their points, and the share of variance that each explains.

    The components' signs are chosen so that the first path ends on the positive side of where it starts.
    """
    points = torch.stack([point.double() for path in paths.values() for point in path])
    points -= points.mean(0)
    # the eigenvectors of the small Gram matrix are the scores: nothing of P x P appears
    values, vectors = torch.linalg.eigh(points @ points.mT)
    values, vectors = values.clamp_min(0).flip(0)[:2], vectors.flip(1)[:, :2]
    scores = vectors * values.sqrt()
    first = len(next(iter(paths.values())))
    scores = scores * torch.where(scores[first - 1] < scores[0], -1.0, 1.0)
    explained = (values / points.square().sum().clamp_min(1e-300)).tolist()
    cuts = scores.split([len(path) for path in paths.values()])
    return {"explained": explained, "paths": {name: part.tolist() for name, part in zip(paths, cuts)}}

"""`isopath connect`: two checkpoints in, a run folder with their permutation, curve and report out."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from isopath.connect import Curve, Profile, along, consensus, plane, rescaled
from isopath.connect.curve import begin
from isopath.connect.training import Training
from isopath.objectives import Task
from isopath.run import report
from isopath.run.checkpointed import trained
from isopath.run.config import Tree, inside
from isopath.run.data import Data
from isopath.run.folder import described
from isopath.run.job import architecture, built, device_of, load, summed
from isopath.run.names import ConfigError
from isopath.run.printed import print_table
from isopath.run.started import resumed, started
from isopath.storage import write_json
from isopath.symmetry import Permutation, align
from isopath.trace.record import about, versions

PLANE_ROWS = 1000  # of the task that the plane is scored on
OPTIONS = ("curve", "bends", "steps", "rate", "sampling", "trainable", "seed")


@dataclass(frozen=True, eq=False)
class Connection:
    """What a config describes, built.

    Attributes:
        model_a, model_b: the two networks.
        objective: of the curve, or `None`.
        data: inputs to align and to estimate statistics on, or `None`.
        tasks: to score along the curve, by name.
        tree: the resolved config.
    """

    model_a: nn.Module
    model_b: nn.Module
    objective: Any
    data: Any
    tasks: dict[str, Task]
    tree: Mapping[str, Tree]

    @classmethod
    def of(cls, tree: Mapping[str, Tree]) -> Connection:
        """Builds a resolved config: reads its data, makes its model, fills in both checkpoints.

        Raises:
            ConfigError: something cannot be built; the message says where and why.
        """
        with inside(Path(tree["directory"])):
            device = device_of(tree["device"])
            models = []
            for key in ("weights_a", "weights_b"):
                model = architecture(tree, device)
                load(model, Path(tree[key]).expanduser(), key, tree["prefixes"])
                models.append(model.eval())
            objective = None if tree["objective"] is None else summed(tree["objective"], "objective", device)
            data = built(tree["data"], "data", device)
            tasks = built(tree["evaluate"] or {}, "evaluate", device)
        data = data.inputs if isinstance(data, Data) else data
        if tree["align"] is not None and data is None:
            raise ConfigError("align needs data:, inputs to measure activations on; or say align: null")
        if tree["rescale"] < 0:
            raise ConfigError(f"rescale must be >= 0 steps, got {tree['rescale']}")
        if tree["consensus"] and (data is None or objective is not None):
            raise ConfigError("consensus: makes the objective of what both networks say of data:; give data: and no "
                              "objective:")  # fmt: skip
        if tree["rescale"] and (tree["align"] is None or (objective is None and not tree["consensus"])):
            raise ConfigError("rescale lowers the objective along the line to an aligned network: give objective: (or "
                              "consensus:) and align:, or say rescale: 0")  # fmt: skip
        if tree["consensus"]:
            objective = consensus(models, data, tree["consensus"])
        return cls(models[0], models[1], objective, data, tasks, tree)

    def aligned(self) -> Permutation | None:
        """The second network's permutation; `None` where the config wants none."""
        method = self.tree["align"]
        return method and align(self.model_a, self.model_b, self.data, method, seed=self.tree["seed"])

    def rescaled(self, permutation: Permutation | None, kept: Path) -> Curve | None:
        """The straight line with the second network's units rescaled, found now or kept; `None` if none is wanted."""
        steps, options = self.tree["rescale"], {key: self.tree[key] for key in ("trainable", "seed")}
        if not steps or permutation is None:
            return None
        if (kept / "curve.json").exists():  # other threads or another torch would find it a few bits away
            return Curve.load(kept, self.model_a, self.tree["trainable"])
        return rescaled(self.model_a, self.model_b, self.objective, permutation, steps=steps, **options)

    def begin(self, permutation: Permutation | None, line: Curve | None = None) -> tuple[Curve, Training | None]:
        """The curve as it starts, and what trains it, to the end of a line where there is one."""
        options = {key: self.tree[key] for key in OPTIONS}
        model_b, moved = (self.model_b, permutation) if line is None else (line.model(1), None)
        return begin(self.model_a, model_b, self.objective, permutation=moved, **options)


def connect(config: Path, out: Path, overrides: Sequence[str] = ()) -> Path:
    """Runs a config in a new run folder and gives the path of its report.

    Raises:
        FileExistsError: there is something at `out`.
        ConfigError: the config is wrong.
    """
    return started("connect", config, out, overrides, Connection.of, _run)


def resume(run: Path) -> Path:
    """Goes on with a run where it stopped, and gives the path of its report.

    Raises:
        FileNotFoundError: `run` is no run folder of the command line.
        BlockingIOError: another process is writing it.
    """
    return resumed("connect", run, Connection.of, _run)


def _run(job: Connection, run: Path) -> Path:
    """From the checkpoints, or from where the run stood, to the report."""
    console, began = Console(highlight=False), time.perf_counter()
    permutation = job.aligned()
    aligned, kept = job.begin(permutation)[0], run / "rescaled"
    if (run / "run.json").exists() and described(run).get("ends") != _digest(aligned):
        raise ConfigError(
            f"the two networks that {run / 'config.yaml'} names, aligned, are not those that the run started from; "
            "bring back their files, or what made them"
        )
    line = job.rescaled(permutation, kept)
    curve, training = job.begin(permutation, line)
    if not (run / "run.json").exists():
        info = {"verb": "connect", "seed": job.tree["seed"], **about(curve.network), "ends": _digest(aligned)}
        write_json(run / "run.json", {"format": 1, **versions(), **info, "title": job.tree["title"] or run.name})
    if line is not None and not (kept / "curve.json").exists():
        line.save(kept)
    if permutation is not None:
        permutation.save(run / "permutation.safetensors")
        console.print(str(permutation).splitlines()[0], soft_wrap=True)
    if training is not None:
        curve = replace(curve, history=trained(training, training.steps, run, console, "curve"))
    if not (run / "curve.json").exists():
        curve.save(run)
    metrics = _findings(job, curve, permutation, line)
    write_json(run / "metrics.json", {**metrics, "seconds": time.perf_counter() - began})
    page = report.write(run)
    print_table(metrics, console, metrics["reason"])
    return page


def _digest(curve: Curve) -> str:
    """Of both ends, the second as it is permuted."""
    ends = torch.stack([curve(0), curve(1)]).cpu().contiguous().view(torch.uint8)
    return hashlib.sha256(ends.numpy().tobytes()).hexdigest()[:16]


# --- what was found -------------------------------------------------------------------------------------------------


def _findings(
    job: Connection, curve: Curve, permutation: Permutation | None, line: Curve | None
) -> dict[str, Any]:
    """Profiles of the straight lines and of the curve, their table, the plane, and a sentence."""
    said = 2 / 3 * len(job.objective) if job.tree["consensus"] else 0.0  # both networks' outputs
    before = said + (line.history[-1]["evaluations"] if line is not None else 0.0)
    spent = before + (curve.history[-1]["evaluations"] if curve.history else 0.0)
    found: dict[str, Any] = {"status": "joined", "evaluations": spent, "steps": len(curve.history)}
    if permutation is not None:
        found["displaced"], found["units"] = sum(permutation.displaced.values()), permutation.symmetries.units
    if not job.tasks:
        return {**found, "reason": "Both networks are joined; evaluate: names tasks to score along the curve."}
    name, task = next(iter(job.tasks.items()))
    curves = _curves(job, curve, permutation, line)
    profiles = {label: along(each, task, data=job.data) for label, each in curves.items()}
    found |= {
        "task": name,
        "profiles": {label: asdict(profile) for label, profile in profiles.items()},
        "table": _table(curves, profiles, name, {"rescaled straight line": before, "isopath curve": spent}),
        "reason": _sentence(profiles, name),
    }
    others = {other: along(curve, each, data=job.data) for other, each in job.tasks.items() if other != name}
    found["others"] = {other: asdict(profile) for other, profile in others.items()}
    if job.tree["plane"]:
        found["landscape"] = asdict(plane(curve, _first(task, PLANE_ROWS), job.tree["plane"], data=job.data))
    return found


def _first(task: Task, count: int) -> Task:
    """The same task, attacked or not, on its first rows."""
    rows = torch.arange(min(count, len(task)))
    few, (inputs, targets) = copy.copy(task), task.examples.take(rows)
    few.__dict__.pop("examples", None)
    weights = None if task.weights is None else task.weights[rows]
    for name, value in (("x", inputs), ("y", targets), ("weights", weights)):
        object.__setattr__(few, name, value)
    return few


def _curves(
    job: Connection, curve: Curve, permutation: Permutation | None, rescaled: Curve | None
) -> dict[str, Curve]:
    """The straight line, that to the permuted network, to the rescaled one, and the curve that was trained."""
    options: dict[str, Any] = {"curve": "segment", "trainable": job.tree["trainable"]}

    def line(moved: Permutation | None) -> Curve:
        tree = {**job.tree, **options}
        return replace(job, tree=tree).begin(moved)[0]

    curves = {"straight line": line(None)}
    if permutation is not None:
        curves["aligned straight line"] = line(permutation)
    if rescaled is not None:
        curves["rescaled straight line"] = rescaled
    if curve.history:
        curves["isopath curve"] = curve
    return curves


def _table(
    curves: Mapping[str, Curve], profiles: Mapping[str, Profile], task: str, spent: Mapping[str, float]
) -> dict[str, list[Any]]:
    scored = all(value is not None for profile in profiles.values() for value in profile.accuracy)
    columns = ["method", *([f"lowest {task} accuracy", f"mean {task} accuracy"] if scored else []),
               "barrier", "length", "gradient evaluations"]  # fmt: skip
    rows = []
    for label, profile in profiles.items():
        accuracy = [min(float(v or 0) for v in profile.accuracy), profile.mean("accuracy")] if scored else []
        rows.append([label, *accuracy, profile.barrier, curves[label].length(), spent.get(label, 0.0)])
    return {"columns": columns, "rows": rows}


def _sentence(profiles: Mapping[str, Profile], task: str) -> str:
    """The last profile beside the first, in words."""
    label, best = list(profiles.items())[-1]
    first = profiles["straight line"]
    if any(value is None for value in best.accuracy):
        said = f"Along the {label} the loss on {task} rises {best.barrier:.3g} above the line between the ends' losses"
        return said + (f"; {first.barrier:.3g} without alignment." if best is not first else ".")
    ends, low = [float(best.accuracy[i] or 0) for i in (0, -1)], min(float(v or 0) for v in best.accuracy)
    name = label.removeprefix("isopath ")
    said = f"Along the {name} accuracy on {task} is never below {100 * low:.2f} %, between ends of "
    said += f"{100 * ends[0]:.2f} and {100 * ends[1]:.2f} %"
    if best is not first:
        said += f"; on the straight line as it was it falls to {100 * min(float(v or 0) for v in first.accuracy):.2f} %"
    return said + "."

"""`isopath generate`: a module and a task in, a run folder with a generator of its weights and a report out."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor, nn

from isopath.evaluate import evaluate
from isopath.generate import Generator, Manifold, explore
from isopath.generate.generation import check_task, finished, training_of
from isopath.generate.generator import SOFTMAX
from isopath.generate.settings import Settings
from isopath.generate.training import Training
from isopath.objectives import Task
from isopath.run import report
from isopath.run.checkpointed import trained
from isopath.run.config import Tree, inside
from isopath.run.folder import described
from isopath.run.job import architecture, built, device_of, load, summed
from isopath.run.names import ConfigError
from isopath.run.printed import print_table
from isopath.run.started import resumed, started
from isopath.storage import write_json
from isopath.trace.record import about, versions

SHOWN = 4, 16  # networks and units whose first weights are drawn


@dataclass(frozen=True, eq=False)
class GenerateJob:
    """What a config describes, built.

    Attributes:
        model: the architecture, with the weights that it starts from where it starts from some.
        task: that the networks learn.
        tests: that samples are scored on, by name.
        tree: the resolved config.
        settings: of the training.
    """

    model: nn.Module
    task: Task
    tests: dict[str, Task]
    tree: Mapping[str, Tree]
    settings: Settings

    @classmethod
    def of(cls, tree: Mapping[str, Tree]) -> GenerateJob:
        """Builds a resolved config: reads its data, makes its model.

        Raises:
            ConfigError: something cannot be built; the message says where and why.
        """
        with inside(Path(tree["directory"])):
            device = device_of(tree["device"])
            model = architecture(tree, device)
            if tree["weights"] is not None:
                load(model, Path(tree["weights"]).expanduser())
            task = summed(tree["task"], "task", device)
            tests = built(tree["evaluate"] or {}, "evaluate", device)
        if tree["start"] == "model" and tree["weights"] is None:
            raise ConfigError("start: model begins around a trained network; name its file with weights:")
        check_task(task)
        if tree["samples"] < 3 or tree["chunk"] < 1:
            raise ConfigError(
                f"samples must be >= 3 and chunk >= 1, got {tree['samples']} and {tree['chunk']}: the spread of two "
                "networks has no dimension"
            )
        return cls(model, task, tests, tree, Settings(**{field.name: tree[field.name] for field in fields(Settings)}))

    def begin(self) -> Training:
        """The training as it starts."""
        return training_of(self.model, self.task, self.settings, self.tree["trainable"], chunk=self.tree["chunk"])


def generate(config: Path, out: Path, overrides: Sequence[str] = ()) -> Path:
    """Runs a config in a new run folder and gives the path of its report.

    Raises:
        FileExistsError: there is something at `out`.
        ConfigError: the config is wrong.
    """
    return started("generate", config, out, overrides, GenerateJob.of, _run)


def resume(run: Path) -> Path:
    """Goes on with a run where it stopped, and gives the path of its report.

    Raises:
        FileNotFoundError: `run` is no run folder of the command line.
        BlockingIOError: another process is writing it.
    """
    return resumed("generate", run, GenerateJob.of, _run)


def _run(job: GenerateJob, run: Path) -> Path:
    """From the module, or from where the run stood, to the report."""
    console, began, training = Console(highlight=False), time.perf_counter(), job.begin()
    if not (run / "run.json").exists():
        info = {"verb": "generate", "seed": job.tree["seed"], **about(training.family.network)}
        write_json(run / "run.json", {"format": 1, **versions(), **info, "title": job.tree["title"] or run.name})
    elif described(run).get("parameters") != about(training.family.network).get("parameters"):
        raise ConfigError(f"the model that {run / 'config.yaml'} makes now is not the one that the run started with")
    history = trained(training, training.settings.steps, run, console, "generator")
    made = finished(training, history)
    made.save(run / "generator.safetensors")
    metrics = _findings(job, made)
    write_json(run / "metrics.json", {**metrics, "seconds": time.perf_counter() - began})
    page = report.write(run)
    print_table(metrics, console, metrics["reason"])
    return page


# --- what was found -------------------------------------------------------------------------------------------------


def _findings(job: GenerateJob, made: Generator) -> dict[str, Any]:
    """Samples looked at, their table, the first weights of some, and a sentence."""
    size, weights = made.size, made.network.space.dimension
    found: dict[str, Any] = {
        "status": made.status, "reason": made.reason, "steps": len(made.history), "size": size, "weights": weights,
        "naive": made.hypernetwork.naive_size, "filters": _filters(made),
        "evaluations": made.history[-1]["evaluations"] if made.history else 0.0,
    }  # fmt: skip
    if not job.tests or made.status == "diverged":
        return found
    seen = {name: explore(made, test, job.tree["samples"], job.tree["seed"] + 1)
            for name, test in job.tests.items() if test.loss in SOFTMAX}  # fmt: skip
    if not seen:
        return {**found, "table": _losses(job, made)}
    name, first = next(iter(seen.items()))
    given = {n: evaluate(job.model, job.tests[n]).accuracy for n in seen} if job.tree["weights"] is not None else {}
    return {**found, "task": name, "manifold": asdict(first), "given": given.get(name), "table": _table(seen, given),
            "reason": _sentence(made, first, name)}  # fmt: skip


def _table(seen: Mapping[str, Manifold], given: Mapping[str, float | None]) -> dict[str, list[Any]]:
    """A column of accuracies for each task."""
    columns, first = ["networks", *(f"{name} accuracy" for name in seen)], next(iter(seen.values()))
    rows: list[list[Any]] = [["as given", *(given[name] for name in seen)]] if given else []
    rows += [["one sample, on average", *(sum(m.accuracy) / len(m.accuracy) for m in seen.values())],
             ["the best sample", *(max(m.accuracy) for m in seen.values())]]  # fmt: skip
    rows += [[f"{k} together", *(m.ensemble[k] for m in seen.values())] for k in first.ensemble if k > 1]
    return {"columns": columns, "rows": rows}


def _losses(job: GenerateJob, made: Generator) -> dict[str, list[Any]]:
    """Where no task has classes: the loss of the first samples and of their mean outputs."""
    networks = {"the first sample": made.models(1)[0], f"{job.tree['samples']} together":
                made.ensemble(job.tree["samples"], mean="logits")}  # fmt: skip
    rows = [[label, *(evaluate(m, test).loss for test in job.tests.values())] for label, m in networks.items()]
    return {"columns": ["networks", *(f"{name} loss" for name in job.tests)], "rows": rows}


def _sentence(made: Generator, seen: Manifold, task: str) -> str:
    count = max(seen.ensemble)
    mean = 100 * sum(seen.accuracy) / len(seen.accuracy)
    said = f"A sampled network has {mean:.2f} % on {task} on average, {count} together {100 * seen.ensemble[count]:.2f}"
    said += f" %; two of them differ on {100 * seen.disagreement:.1f} % of the rows"
    return f"{said}. {made.reason}"


def _filters(made: Generator) -> list[list[list[list[float]]]]:
    """The first layer's units of a few samples, as pictures: by sample, unit, row and column."""
    space = made.network.space
    first = next((name for name, shape in zip(space.names, space.shapes) if len(shape) >= 2), None)
    if first is None:
        return []
    found = []
    for theta in made.sample(SHOWN[0]):
        pictures = _pictures(space.unflatten(theta)[first][: SHOWN[1]])
        if pictures is None:
            return []
        found.append((pictures / pictures.abs().amax((1, 2), keepdim=True).clamp_min(1e-12)).tolist())
    return found


def _pictures(weight: Tensor) -> Tensor | None:
    """`(units, h, w)`: a convolution's window, or the inputs of a unit where they make a square."""
    if weight.ndim == 4:
        return weight.mean(1) if min(weight.shape[2:]) > 1 else None
    side = math.isqrt(weight.shape[1])
    return weight.view(-1, side, side) if weight.ndim == 2 and side**2 == weight.shape[1] and side > 2 else None

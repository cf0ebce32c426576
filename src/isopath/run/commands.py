"""What the verbs of the command line do, given a config or a run folder."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from isopath.evaluate import evaluate_at
from isopath.network import Network
from isopath.run import report
from isopath.run.config import dumped, read, resolve
from isopath.run.findings import findings
from isopath.run.folder import described, emptied, fresh, locked, opened, run_of, same_ground, standing, swept
from isopath.run.job import Job
from isopath.run.names import ConfigError
from isopath.run.printed import print_table
from isopath.storage import DamagedFile, load_tensors, read_json, read_lines, write_json
from isopath.trace.trajectory import Trajectory
from isopath.verbs import trace as traced

MEMORY = "memory.safetensors"

def trace(config: Path, out: Path, overrides: Sequence[str] = ()) -> Path:
    """Runs a config in a new run folder and gives the path of its report.

    Raises:
        FileExistsError: there is something at `out`.
        ConfigError: the config is wrong.
    """
    out = fresh(out)
    tree = resolve(read(config, overrides))
    job = Job.of(tree)
    with opened(out, dumped(tree)):
        return _finished(job, traced(**job.arguments, run=out, progress=Console().is_terminal), out)


def resume(run: Path) -> Path:
    """Goes on with a run where it stopped, and gives the path of its report.

    Raises:
        FileNotFoundError: `run` is no run folder of the command line.
        BlockingIOError: another process is writing it.
    """
    run = run_of(run, "trace")
    with locked(run):
        swept(run)
        again = (run / "checkpoint.safetensors").exists()
        if not again:
            warnings.warn(f"{run} had not reached its first checkpoint and starts from the beginning", stacklevel=2)
            emptied(run)
        job = Job.of(resolve(read(run / "config.yaml")))
        if (run / "metrics.json").exists():
            warnings.warn(f"{run} has ended already; its figures and report are written anew", stacklevel=2)
        if again:
            same_ground(described(run))
            _check_start(job, run)
        path = traced(**job.arguments, run=run, resume=again, progress=Console().is_terminal)
        return _finished(job, path, run)


def evaluate(run: Path, step: int | None = None) -> None:
    """Scores a kept waypoint, the last by default, on the tasks of the run's config, and prints a table.

    Raises:
        ConfigError: the config names no task to evaluate, or the step was not kept.
    """
    run = run_of(run, "trace")
    job = Job.of(resolve(read(run / "config.yaml")))
    if not job.tasks:
        raise ConfigError(f"the config of {run} has no evaluate: tasks by name; add them to {run / 'config.yaml'}")
    network = Network(job.arguments["model"], job.arguments["trainable"])
    step = _kept(run, step)
    tensors, _ = load_tensors(run / "waypoints" / f"{step:06d}.safetensors")
    theta = network.space.flatten(tensors)
    scores = {name: evaluate_at(network, theta, task) for name, task in job.tasks.items()}
    table = Table("task", "accuracy", "loss", "rows", title=f"{run.name}, step {step}", title_justify="left")
    for name, score in scores.items():
        table.add_row(name, report.percent(score.accuracy), f"{score.loss:.4g}", f"{score.rows:,}")
    Console().print(table)


def show(run: Path) -> None:
    """Prints how a run stands: status, sentence, key figures and its kept waypoints.

    Raises:
        FileNotFoundError: `run` is no run folder.
    """
    about, console = described(run), Console(highlight=False)
    metrics = read_json(run / "metrics.json") if (run / "metrics.json").exists() else {}
    rows, _ = read_lines(run / "history.jsonl")
    last: Mapping[str, Any] = rows[-1] if rows else {}
    title, status = about.get("title") or run.absolute().name, metrics.get("status") or standing(run)
    console.print(f"[bold]{title}[/bold]  {status}", soft_wrap=True)
    console.print(metrics.get("reason") or f"It has not ended; go on with it: isopath resume {run}", soft_wrap=True)
    figures = {
        "steps": metrics.get("steps", last.get("step")),
        "attempts": metrics.get("attempts", last.get("attempt")),
        "drift": metrics.get("drift", last.get("drift")),
        "tolerance": about.get("tolerance"),
        "units displaced": metrics.get("displaced"),
        "gradient evaluations": metrics.get("evaluations", last.get("evaluations")),
        "seconds": metrics.get("seconds", last.get("seconds")),
    }
    said = [f"{name} {report.shown(value, name)}" for name, value in figures.items() if value is not None]
    console.print("  ".join(said), soft_wrap=True)
    print_table(metrics, console)
    if (run / "waypoints.json").exists():
        _print_waypoints(read_json(run / "waypoints.json"), metrics.get("along") or {}, console)
    if (run / "report.html").exists():
        console.print(f"report: {run / 'report.html'}", soft_wrap=True)


# --- the end of a run -----------------------------------------------------------------------------------------------


def _finished(job: Job, path: Trajectory, run: Path) -> Path:
    """Writes what was found, the memory and the report, prints the table."""
    if job.remember:
        job.remembered(path.model()).save(run / MEMORY)
    metrics = {**read_json(run / "metrics.json"), **findings(job, path)}
    write_json(run / "metrics.json", metrics)
    if job.title:
        write_json(run / "run.json", {**described(run), "title": job.title})
    page = report.write(run)
    console = Console(highlight=False)
    print_table(metrics, console, f"{path.status}: {path.reason}")
    return page


def _print_waypoints(waypoints: Sequence[Mapping[str, Any]], along: Mapping[str, Any], console: Console) -> None:
    series, steps = along.get("series") or {}, along.get("step") or []
    table = Table("step", "length", "drift", "objective", *series, title="kept waypoints", title_justify="left")
    chosen = sorted({round(i * (len(waypoints) - 1) / 11) for i in range(12)})
    for waypoint in [waypoints[i] for i in chosen]:
        at = steps.index(waypoint["step"]) if waypoint["step"] in steps else None
        scores = [report.percent(None if at is None else values[at]) for values in series.values()]
        figures = [report.shown(waypoint[key], key) for key in ("step", "length", "drift", "objective")]
        table.add_row(*figures, *scores)
    console.print(table)


def _check_start(job: Job, run: Path) -> None:
    """Raises `ConfigError` if the config no longer makes the model that the run started from."""
    try:
        tensors, _ = load_tensors(run / "waypoints" / "000000.safetensors")
    except (FileNotFoundError, DamagedFile):
        return
    network = Network(job.arguments["model"], job.arguments["trainable"])
    if not torch.equal(network.space.flatten(tensors), network.start):
        raise ConfigError(
            f"the model that {run / 'config.yaml'} makes now does not have the weights that the run started from; "
            "bring back the file or the code that made it"
        )


def _kept(run: Path, step: int | None) -> int:
    """A kept step, the last by default."""
    if not (run / "waypoints.json").exists():
        raise FileNotFoundError(f"{run} has no waypoint yet; isopath resume {run} goes on with it")
    steps = [row["step"] for row in read_json(run / "waypoints.json")]
    if step is not None and step not in steps:
        nearest = min(steps, key=lambda kept: abs(kept - step))
        raise ConfigError(f"{run} kept no waypoint of step {step}; the nearest kept one is {nearest}")
    return steps[-1] if step is None else step
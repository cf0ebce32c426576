"""What the verbs of the command line do, given a config or a run folder."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from rich.console import Console
from rich.table import Table

from isopath.evaluate import evaluate_at
from isopath.network import Network
from isopath.run import report
from isopath.run.config import dumped, read, resolve
from isopath.run.findings import findings
from isopath.run.job import Job
from isopath.run.names import ConfigError
from isopath.storage import DamagedFile, load_tensors, read_json, read_lines, write_json, write_text
from isopath.trace.trajectory import Trajectory
from isopath.verbs import trace as traced
from isopath.version import __version__


def trace(config: Path, out: Path, overrides: Sequence[str] = ()) -> Path:
    """Runs a config in a new run folder and gives the path of its report.

    Raises:
        FileExistsError: there is something at `out`.
        ConfigError: the config is wrong.
    """
    out = out.absolute()
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise FileExistsError(
            f"the run folder {out} exists already and is never overwritten; "
            f"go on with it (isopath resume {out}) or choose another --out"
        )
    tree = resolve(read(config, overrides))
    job = Job.of(tree)
    write_text(out / "config.yaml", dumped(tree))
    with _locked(out):
        try:
            path = traced(**job.arguments, run=out, progress=Console().is_terminal)
        except Exception:
            _withdrawn(out)
            raise
        return _finished(job, path, out)


def resume(run: Path) -> Path:
    """Goes on with a run where it stopped, and gives the path of its report.

    Raises:
        FileNotFoundError: `run` is no run folder of the command line.
        BlockingIOError: another process is writing it.
    """
    run = _run(run)
    with _locked(run):
        _swept(run)
        again = (run / "checkpoint.safetensors").exists()
        if not again:
            warnings.warn(f"{run} had not reached its first checkpoint and starts from the beginning", stacklevel=2)
            _emptied(run)
        job = Job.of(resolve(read(run / "config.yaml")))
        if (run / "metrics.json").exists():
            warnings.warn(f"{run} has ended already; its figures and report are written anew", stacklevel=2)
        if again:
            _same_ground(_described(run))
            _check_start(job, run)
        path = traced(**job.arguments, run=run, resume=again, progress=Console().is_terminal)
        return _finished(job, path, run)


def evaluate(run: Path, step: int | None = None) -> None:
    """Scores a kept waypoint, the last by default, on the tasks of the run's config, and prints a table.

    Raises:
        ConfigError: the config names no task to evaluate, or the step was not kept.
    """
    run = _run(run)
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
    about, console = _described(run), Console(highlight=False)
    metrics = read_json(run / "metrics.json") if (run / "metrics.json").exists() else {}
    rows, _ = read_lines(run / "history.jsonl")
    last: Mapping[str, Any] = rows[-1] if rows else {}
    title, status = about.get("title") or run.absolute().name, metrics.get("status") or _standing(run)
    console.print(f"[bold]{title}[/bold]  {status}", soft_wrap=True)
    console.print(metrics.get("reason") or f"It has not ended; go on with it: isopath resume {run}", soft_wrap=True)
    figures = {
        "steps": metrics.get("steps", last.get("step")),
        "attempts": metrics.get("attempts", last.get("attempt")),
        "drift": metrics.get("drift", last.get("drift")),
        "tolerance": about.get("tolerance"),
        "gradient evaluations": metrics.get("evaluations", last.get("evaluations")),
        "seconds": metrics.get("seconds", last.get("seconds")),
    }
    console.print("  ".join(f"{name} {report.shown(value, name)}" for name, value in figures.items()), soft_wrap=True)
    print_table(metrics, console)
    if (run / "waypoints.json").exists():
        _print_waypoints(read_json(run / "waypoints.json"), metrics.get("along") or {}, console)
    if (run / "report.html").exists():
        console.print(f"report: {run / 'report.html'}", soft_wrap=True)


# --- the end of a run -----------------------------------------------------------------------------------------------


def _finished(job: Job, path: Trajectory, run: Path) -> Path:
    """Writes what was found and the report, prints the table."""
    metrics = {**read_json(run / "metrics.json"), **findings(job, path)}
    write_json(run / "metrics.json", metrics)
    if job.title:
        write_json(run / "run.json", {**_described(run), "title": job.title})
    page = report.write(run)
    console = Console(highlight=False)
    print_table(metrics, console, f"{path.status}: {path.reason}")
    return page


def print_table(metrics: Mapping[str, Any], console: Console, ended: str | None = None) -> None:
    """The final table on its side: a column per method, so that it fits a terminal; below it how the trace ended."""
    final = metrics.get("table") or {}
    rows, columns = final.get("rows") or [], final.get("columns") or []
    if not rows:
        return
    table = Table("", *[str(row[0]) for row in rows], caption=ended, caption_justify="left", caption_style="")
    for i, column in enumerate(columns[1:], start=1):
        table.add_row(column, *[report.shown(row[i], column) for row in rows])
    console.print(table)


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


# --- the folder -----------------------------------------------------------------------------------------------------


def _described(run: Path) -> dict[str, Any]:
    if not (run / "run.json").is_file():
        there = sorted(p.parent.name for p in run.absolute().parent.glob("*/run.json"))
        beside = f"; beside it: {', '.join(there)}" if there else ""
        raise FileNotFoundError(f"{run} is not a run folder: it has no run.json{beside}")
    return read_json(run / "run.json")


def _run(run: Path) -> Path:
    """The folder of a run that a config describes."""
    run = run.absolute()
    if not (run / "config.yaml").is_file():
        _described(run)
        raise FileNotFoundError(f"{run} has no config.yaml: it was started from Python; go on with it there")
    verb = _described(run).get("verb") if (run / "run.json").is_file() else "trace"
    if verb != "trace":
        raise ConfigError(f"{run} was made by isopath {verb}, not by isopath trace; see isopath show {run}")
    return run


@contextlib.contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Holds the run: two processes that write one history would spoil it. The lock goes when its process does."""
    with (run / "config.yaml").open() as file:
        if not _lock(file):
            raise BlockingIOError(f"{run} is being written by another process; wait for its end, or stop it first")
        yield


def _lock(file: TextIO) -> bool:
    try:
        import fcntl
    except ImportError:  # not on every system: there the user must take care
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _standing(run: Path) -> str:
    if not (run / "config.yaml").is_file():
        return "not ended"
    with (run / "config.yaml").open() as file:
        return "stopped before its end" if _lock(file) else "running"


def _withdrawn(run: Path) -> None:
    """Removes a folder in which nothing has begun, so that the corrected command can have its name."""
    if [p.name for p in run.iterdir()] == ["config.yaml"]:
        (run / "config.yaml").unlink()
        run.rmdir()


def _swept(run: Path) -> None:
    """Removes the temporary files that a killed process has left."""
    for file in [*run.glob(".*"), *run.glob("waypoints/.*")]:
        if file.is_file():
            file.unlink()


def _emptied(run: Path) -> None:
    """Removes what a run without a checkpoint has left beside its config."""
    for name in ("run.json", "history.jsonl", "waypoints.json", "metrics.json"):
        (run / name).unlink(missing_ok=True)
    for file in run.glob("waypoints/*.safetensors"):
        file.unlink()
    with contextlib.suppress(FileNotFoundError):
        (run / "waypoints").rmdir()


def _same_ground(about: Mapping[str, Any]) -> None:
    """Takes the run's number of threads, on which the last bits depend, and warns if its versions were others."""
    torch.set_num_threads(int(about.get("threads", torch.get_num_threads())))
    for name, now in (("isopath", __version__), ("torch", str(torch.__version__))):
        if about.get(name) not in (None, now):
            said = f"the run was started with {name} {about[name]}; {now} may end a few bits away"
            warnings.warn(said, stacklevel=3)


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

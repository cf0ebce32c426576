"""`isopath pack`: tasks in, a run folder with one network for all of them and a report out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from isopath.evaluate import evaluate
from isopath.network import Network
from isopath.objectives import Task
from isopath.pack import Packing
from isopath.pack.packer import each, settings_of
from isopath.run import report
from isopath.run.config import Tree, inside
from isopath.run.job import architecture, built, device_of, load
from isopath.run.names import ConfigError
from isopath.run.printed import print_table
from isopath.run.started import resumed, started
from isopath.storage import append_line, load_tensors, rewrite_lines, write_json
from isopath.trace.record import about, versions

OPTIONS = ("share", "reuse", "pattern", "epochs", "rate", "tolerance", "trainable", "seed", "score")


@dataclass(frozen=True, eq=False)
class PackJob:
    """What a config describes, built.

    Attributes:
        model: the body.
        tasks: that are packed, by name.
        tests: that their sub-networks are scored on.
        tree: the resolved config.
    """

    model: nn.Module
    tasks: dict[str, Task]
    tests: dict[str, Task]
    tree: Mapping[str, Tree]

    @classmethod
    def of(cls, tree: Mapping[str, Tree]) -> PackJob:
        """Builds a resolved config: reads its data, makes its model, its stems and heads.

        Raises:
            ConfigError: something cannot be built; the message says where and why.
        """
        with inside(Path(tree["directory"])), torch.random.fork_rng():
            device = device_of(tree["device"])
            model = architecture(tree, device)
            if tree["weights"] is not None:
                load(model, Path(tree["weights"]).expanduser())
            torch.manual_seed(tree["seed"])  # of stems and heads
            tasks = built(tree["tasks"], "tasks", device)
            tests = built(tree["evaluate"] or {}, "evaluate", device)
        if not tasks:
            raise ConfigError("tasks: there is no task to pack; name at least one")
        strange = [name for name in tests if name not in tasks]
        if strange:
            raise ConfigError(f"evaluate.{strange[0]} is none of the tasks that are packed: {', '.join(tasks)}")
        return cls(model, tasks, tests, tree)


def pack(config: Path, out: Path, overrides: Sequence[str] = ()) -> Path:
    """Runs a config in a new run folder and gives the path of its report.

    Raises:
        FileExistsError: there is something at `out`.
        ConfigError: the config is wrong.
    """
    return started("pack", config, out, overrides, PackJob.of, _run)


def resume(run: Path) -> Path:
    """Goes on with a run after the last task that it had packed, and gives the path of its report.

    Raises:
        FileNotFoundError: `run` is no run folder of the command line.
        BlockingIOError: another process is writing it.
    """
    return resumed("pack", run, PackJob.of, _run)


def _run(job: PackJob, run: Path) -> Path:
    """From the tasks that are packed already to the report."""
    console, began, file = Console(highlight=False), time.perf_counter(), run / "packing.safetensors"
    settings = settings_of(**{key: job.tree[key] for key in OPTIONS}, optimizer=None)
    packing = Packing.none(job.model, settings)
    if file.exists():
        parts = [{name: module for name, task in job.tasks.items() if (module := getattr(task, part)) is not None}
                 for part in ("stem", "head")]  # fmt: skip
        done = load_tensors(file)[1]["tasks"]
        parts = [{entry["name"]: part[entry["name"]] for entry in done if entry["name"] in part} for part in parts]
        packing = replace(Packing.load(file, job.model, *parts), settings=settings)
    left = {name: task for name, task in job.tasks.items() if name not in packing}
    steps = each(packing, left, settings, job.tree["parallel"]) if left else iter(())
    title = job.tree["title"] or run.name
    if len(packing):  # the file may be ahead of the history
        rewrite_lines(run / "history.jsonl", packing.history)
    for packing in steps:
        if not (run / "run.json").exists():
            info = {"verb": "pack", "seed": job.tree["seed"], **about(Network(job.model, settings.trainable))}
            write_json(run / "run.json", {"format": 1, **versions(), **info, "title": title})
        if not job.tree["parallel"] or len(packing) == len(job.tasks):  # those that choose together are saved together
            packing.save(file)
        name = packing.tasks[-1]
        append_line(run / "history.jsonl", packing.history[-1])
        console.print(f"{name}: {100 * packing.used[name]:.1f} % of the weights, {100 * packing.free:.1f} % free")
    metrics = _findings(job, packing)
    write_json(run / "metrics.json", {**metrics, "seconds": time.perf_counter() - began})
    page = report.write(run)
    print_table(metrics, console, metrics["reason"])
    return page


def _findings(job: PackJob, packing: Packing) -> dict[str, Any]:
    """Who owns what, how good each task's sub-network is, and a sentence."""
    scores = {name: evaluate(packing[name], test) for name, test in job.tests.items()}
    names = dict(zip((m.owner for m in packing.members.values()), packing.members))
    rows = []
    for name, member in packing.members.items():
        score, own = scores.get(name), packing.used[name]
        own_count = sum(packing.table.counts(member.owner).values())
        rows.append([name, score and score.accuracy, score and score.loss, own_count, own,
                     ", ".join(names[k] for k in member.reads) or "none"])  # fmt: skip
    layers = {
        layer: {name: float((owners == m.owner).double().mean()) for name, m in packing.members.items()}
        for layer, owners in packing.table.table.items()
    }  # fmt: skip
    tasks = "1 task has" if len(packing) == 1 else f"{len(packing)} tasks share"
    said = f"{tasks} {packing.table.size:,} weights, each with its own; "
    said += f"{100 * packing.free:.1f} % are free"
    lowest = min((s.accuracy for s in scores.values() if s.accuracy is not None), default=None)
    said += "" if lowest is None else f", and the least accurate task stands at {100 * lowest:.2f} %"
    return {
        "status": "packed", "reason": said + ".", "free": packing.free, "layers": layers, "tasks": list(packing.tasks),
        "accuracy": {name: score.accuracy for name, score in scores.items()},
        "table": {"columns": ["task", "accuracy", "loss", "own weights", "share of all weights", "reads"],
                  "rows": rows},
    }  # fmt: skip

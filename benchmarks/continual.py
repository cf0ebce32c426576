"""Continual learning on MNIST and CIFAR-10: tasks one after the other, and how much of the earlier ones is left.

The protocols are in `benchmarks/protocols.py`, the methods in `benchmarks/learners`. Every method sees the same batches
in the same order, starts from the same weights and takes the same steps; those that replay rows or pull towards kept
ones spend more gradient evaluations, and curvature takes some when a task ends: all are in the results. Each chooses
among its settings by the mean accuracy on 5,000 held-out training images, with the data order and the weights of seed
0, over all tasks, with 400 of 2,000 steps where there are those; the choice is in the results.

R[i, j] is the test accuracy on task j after task i, in percent; with T tasks and b_j the accuracy before training,
average = mean_j R[T, j], backward transfer = mean_{j<T} R[T, j] - R[j, j], forward transfer =
mean_{j>1} R[j-1, j] - b_j (Lopez-Paz & Ranzato 2017, arXiv 1706.08840) and forgetting = mean_{j<T} max_i R[i, j] -
R[T, j] (Chaudhry et al. 2018, arXiv 1801.10112).

    python -m benchmarks.continual --data DATA
    python -m benchmarks.continual --data DATA --only permuted-10 --seeds 0
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.harness import GROUND, RESULTS, arguments, chosen, run, table
from benchmarks.learners.ewc import EWC
from benchmarks.learners.gpm import GPM
from benchmarks.learners.kept import Kept
from benchmarks.learners.learner import Learner, Stage
from benchmarks.learners.lwf import LwF
from benchmarks.learners.penalty import Penalty
from benchmarks.learners.replay import AGEM, DERPP, ER
from benchmarks.learners.si import SI
from benchmarks.protocols import PROTOCOLS, Protocol

SHORTER = {"split-domain": 400, "split-task": 400}  # the steps of a task that they are chosen with, where not all
OURS = (*GROUND, "optim", *(f"geometry/{name}" for name in ("batch", "blocks", "choice", "curvature", "divergence",
        "estimated", "factors", "kronecker", "memory", "reference", "remembered", "sketch", "sweep")))  # fmt: skip
Grid = list[dict[str, Any]]
METHODS: dict[str, type[Learner]] = {
    "fine-tuning": Learner, "joint": Learner, "ewc": EWC, "si": SI, "lwf": LwF, "gpm": GPM, "er": ER, "a-gem": AGEM,
    "der++": DERPP, "penalty": Penalty, "kronecker posterior": Kept, "isopath": Kept, "isopath, examples": Kept,
    "isopath, both": Kept, "isopath, drawn": Kept,
}  # fmt: skip


def rates(grid: tuple[float, ...], **settings: Any) -> Grid:
    """Settings at several rates."""
    return [{"rate": rate, **settings} for rate in grid]


def curved(grid: tuple[float, ...], **settings: Any) -> Grid:
    """Settings of factors alone at several rates."""
    return rates(grid, **{"strength": 1.0, "damping": 1.0, "rank": 128, **settings})


def kept(grid: tuple[float, ...], strengths: tuple[float, ...], **settings: Any) -> Grid:
    """Settings with examples."""
    base = {"examples": True, "damping": 1.0, "replay": 1.0, **settings}
    return [g for s in strengths for g in rates(grid, strength=s, **base)]


MID = (0.1, 0.03)
PLAIN = {"optimizer": "sgd"}  # as the protocols of dark experience replay have it
DRAWN = {"factors": False, "drawn": 100_000, "kept": 384, "replay": 1.0, "even": True, "strength": 0.0, "damping": 1.0,
         "measured": 60_000}
FINER = {"strength": 3.0, "damping": 0.3, "rank": 256, "measured": 30_000, "renew": 5}
FINER_LATER = [0.95, 0.99, 0.99]  # of each layer's inputs, as gradient projection memory was published
DRIFTING: dict[str, Grid] = {
    "fine-tuning": [*rates((0.03, 0.01)), {"rate": 0.2, **PLAIN}],
    "joint": [*rates((0.2, 0.1)), {"rate": 0.2, **PLAIN}],
    "ewc": [*({"rate": 0.01, "strength": s} for s in (1.0, 10.0, 100.0)), {"rate": 0.1, "strength": 10.0, **PLAIN}],
    "si": [*rates((0.01,), strength=0.1, floor=0.1), {"rate": 0.1, "strength": 0.5, "floor": 1.0, **PLAIN}],
    "lwf": [g for s in (0.5, 1.0) for g in rates((0.01,), strength=s, temperature=2.0)],
    "gpm": [g for s in (0.95, 0.99) for g in rates((0.03,), share=s)] + [
        {"rate": 0.1, "share": 0.97, **PLAIN}, {"rate": 0.03, "share": FINER_LATER},
        {"rate": 0.1, "share": FINER_LATER, **PLAIN}],
    "er": [*rates((0.03,)), {"rate": 0.2, **PLAIN}], "a-gem": [*rates((0.03,)), {"rate": 0.1, **PLAIN}],
    "der++": [*({"rate": r, "alpha": 1.0, "beta": 1.0} for r in (0.1, 0.03)),
              {"rate": 0.1, "alpha": 1.0, "beta": 1.0, **PLAIN}, {"rate": 0.2, "alpha": 1.0, "beta": 0.5, **PLAIN},
              {"rate": 0.2, "alpha": 1.0, "beta": 1.0}],
    "penalty": [g for s in (1.0, 10.0) for g in rates((0.02,), strength=s)],  # the rate of the class-incremental grid
    "kronecker posterior": [{"rate": 0.1, **FINER, "merge": True}],  # the settings of isopath's own choice stand in
    "isopath": [{"rate": r, **FINER} for r in (0.1, 0.05, 0.2)],
    "isopath, examples": kept((0.1,), (1.0, 3.0), factors=False),
    "isopath, both": [{"rate": r, **FINER, "examples": True, "replay": 0.3} for r in (0.1, 0.05)],
    "isopath, drawn": [{"rate": 0.1, **DRAWN}, {"rate": 0.2, **DRAWN, "kept": 512},
                       {"rate": 0.2, **DRAWN, "kept": 768, "drawn": 200_000},
                       *({"rate": r, **DRAWN, "kept": 1024, "drawn": 300_000, "sketch": [16, 32, 128]}
                         for r in (0.2, 0.3))],
}  # fmt: skip
PERMUTED: Grid = [
    {"rate": 0.2, "strength": 1.0, "damping": 1.0, "rank": 128},
    {"rate": 0.2, "strength": 3.0, "damping": 0.3, "rank": 256, "measured": 30_000},
    {"rate": 0.2, **FINER}, {"rate": 0.4, **FINER}, {"rate": 0.2, **FINER, "rank": 400, "measured": 55_000},
]
STEADY = {"rate": 0.02, "optimizer": "momentum", "strength": 3.0, "damping": 0.3, "rank": 64, "renew": 5,
          "measured": 3000}  # fmt: skip
SQUARED = {**STEADY, "divergence": "squared_error"}
VENTURED: dict[str, Grid] = {
    "fine-tuning": rates((1e-3,)), "joint": rates((1e-3,)),
    "ewc": [g for s in (10.0, 100.0, 1000.0, 10000.0) for g in rates((1e-3,), strength=s)]
    + [{"rate": 0.02, "optimizer": "momentum", "strength": s} for s in (10.0, 100.0)],
    "si": [g for s in (1.0, 10.0, 100.0) for g in rates((1e-3,), strength=s, floor=0.1)]
    + [{"rate": 0.02, "optimizer": "momentum", "strength": s, "floor": 0.1} for s in (0.1, 1.0)],
    "lwf": [g for s in (1.0, 2.0) for g in rates((1e-3,), strength=s, temperature=2.0)]
    + [{"rate": 0.02, "optimizer": "momentum", "strength": s, "temperature": 2.0} for s in (1.0, 2.0)],
    "kronecker posterior": [{**STEADY, "strength": s, "merge": True} for s in (3.0, 30.0)],
    "isopath": [{**kind, "features": f} for kind in (STEADY, SQUARED) for f in (1.0, 3.0)]
    + [{**STEADY, "features": f} for f in (0.0, 0.1)],
    "isopath, both": [{**SQUARED, "features": 1.0, "examples": True, "replay": r} for r in (1.0, 4.0)]
    + [{**STEADY, "features": f, "examples": True, "replay": 1.0} for f in (0.1, 3.0)]
    + [{**SQUARED, "features": 3.0, "examples": True, "replay": r} for r in (4.0, 16.0)],
    "isopath, drawn": [{**DRAWN, "drawn": 20_000, "kept": 128, **kind} for kind in (
        {"rate": 1e-3}, {"rate": 0.02, "optimizer": "momentum"},
        {"rate": 0.02, "optimizer": "momentum", "strength": 0.3})],
}  # fmt: skip
FEW = {"kept": 32}  # kept rows in a step, as many as new ones
REPLAYED: dict[str, Grid] = {
    "fine-tuning": rates(MID), "joint": rates((*MID, 0.2, 0.4)), "er": rates(MID, **FEW),
    "der++": [g for a, b in ((0.2, 0.5), (0.5, 0.5)) for g in rates(MID, alpha=a, beta=b, **FEW)],
    "penalty": [g for s in (1.0, 10.0) for g in rates((0.02, 0.005), strength=s, **FEW)],
    "isopath, examples": kept(MID, (1.0,), factors=False, **FEW),
    "isopath, both": kept(MID, (1.0,), rank=128, **FEW),
}  # fmt: skip
GRIDS: dict[str, dict[str, Grid]] = {
    "permuted-10": {
        "fine-tuning": rates((0.05, 0.01)), "joint": rates((0.1, 0.05)),
        "ewc": [{"rate": 0.02, "strength": s} for s in (3.0, 30.0, 300.0)],
        "gpm": [g for s in (0.95, 0.99) for g in rates((0.05, 0.02), share=s)]
        + [{"rate": 0.05, "share": FINER_LATER}, {"rate": 0.25, "share": FINER_LATER, **PLAIN}],
        "kronecker posterior": [{**settings, "merge": True} for settings in PERMUTED],
        "isopath": PERMUTED,
    },
    "permuted-20": {**DRIFTING, "isopath": [*DRIFTING["isopath"], {"rate": 0.1, **FINER, "steer_every": 5}],
                    "isopath, both": DRIFTING["isopath, both"][:1],  # the rate that isopath chose without examples
                    "isopath, drawn": [
        {"rate": 0.1, **DRAWN, **FINER, "factors": True, "kept": 512, "replay": 5.0, "even": False, "strength": 1.0,
         "rank": 400, "measured": 55_000},
        {"rate": 0.2, **DRAWN, "kept": 512}]},
    "rotated-20": DRIFTING,
    "split-class": {
        "fine-tuning": rates(MID), "joint": rates(MID),
        "ewc": [{"rate": 0.03, "strength": s} for s in (10.0, 100.0)],
        "si": [{"rate": 0.03, "strength": s, "floor": 0.1} for s in (1.0, 10.0)],
        "lwf": rates(MID, strength=1.0, temperature=2.0),
        "gpm": [g for s in (0.95, 0.99, FINER_LATER) for g in rates((0.03,), share=s)],
        "er": rates((0.1, 0.03, 0.01)), "a-gem": rates(MID),
        "der++": [g for a, b in ((0.2, 1.0), (0.5, 0.5)) for g in rates((0.1, 0.03), alpha=a, beta=b)],
        "penalty": [g for s in (1.0, 10.0) for g in rates((0.02, 0.005), strength=s)],
        "kronecker posterior": curved((0.1, 0.03), merge=True), "isopath": curved((0.1, 0.03)),
        "isopath, examples": kept((0.1, 0.03), (1.0, 3.0), factors=False),
        "isopath, both": kept((0.1, 0.03), (1.0, 3.0), rank=128),
        "isopath, drawn": [{"rate": r, **DRAWN, "drawn": 10_000, "kept": 128} for r in (0.1, 0.2)]
        + [{"rate": 0.1, **DRAWN, "drawn": 10_000, "kept": 128, "strength": 0.1}],
    },
    "split-domain": VENTURED,
    "split-task": VENTURED,
    "cifar-class": REPLAYED,
    "cifar-task": {
        **REPLAYED,
        "isopath": [*(g for s in (1.0, 3.0) for g in curved((0.1,), strength=s, measured=5000, renew=5)),
                    *curved((0.1,), measured=5000, renew=10, steer_every=10)],
        "der++": [*REPLAYED["der++"], {"rate": 0.2, "alpha": 0.5, "beta": 0.5, **FEW}],
        "isopath, examples": [*REPLAYED["isopath, examples"], *kept((0.1,), (3.0,), factors=False, **FEW),
                              *kept((0.2,), (1.0,), factors=False, **FEW)],
    },
}  # fmt: skip


def learned(
    root: Path, p: Protocol, method: str, settings: dict[str, Any], seed: int, tasks: int, held: bool
) -> dict[str, Any]:
    """One pass over the tasks: the matrix R and what follows from it."""
    stages, model = p.stages(root, seed, p.tasks, held)[:tasks], p.network(seed)
    learner = METHODS[method](model, settings, p.build, p.examples, p.classes)
    before, rows, seconds = [_accuracy(model, stage) for stage in stages], [], 0.0
    together = method == "joint"
    evaluations = 0.0
    for t, stage in enumerate(stages):
        began = time.perf_counter()
        if not together:
            learner.begin(stage)
            evaluations += _train(learner, p, [stage], seed * 100 + t)
            if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
                return {"average": 0.0, "R": rows, "diverged": t}
            learner.end(stage)
        elif t == tasks - 1:
            learner.begin(stage)
            evaluations += _train(learner, p, stages, seed)
        seconds += time.perf_counter() - began
        rows.append([_accuracy(model, other) for other in stages])
    last, evaluations = rows[-1], evaluations + learner.spent
    found: dict[str, Any] = {"average": sum(last) / tasks, "R": rows, "before": before, "bytes": learner.bytes}
    if not together:
        old = range(tasks - 1)
        found["backward"] = sum(last[j] - rows[j][j] for j in old) / len(old)
        found["forward"] = sum(rows[j][j + 1] - before[j + 1] for j in old) / len(old)
        found["forgetting"] = sum(max(r[j] for r in rows[j:]) - last[j] for j in old) / len(old)
    return {**found, "evaluations": evaluations, "seconds_a_task": seconds / tasks}


def _train(learner: Learner, p: Protocol, stages: list[Stage], seed: int) -> float:
    """One task, or several mixed; the gradient evaluations."""
    generator, counts = torch.Generator().manual_seed(seed), [len(stage.x) for stage in stages]
    count = sum(counts)
    ends = torch.tensor(counts).cumsum(0)
    total = p.steps * len(stages) if p.steps else p.epochs * (count // p.size)
    order = torch.zeros(0, dtype=torch.int64)
    for k in range(total):
        if len(order) < p.size:
            order = torch.randperm(count, generator=generator)
        rows, order = order[: p.size], order[p.size :]
        if p.decay:
            for group in learner.optimizer.param_groups:
                group["lr"] = learner.settings["rate"] * (1 - k / total)
        which = torch.searchsorted(ends, rows, right=True)
        if len(stages) == 1 or stages[0].columns == stages[-1].columns:
            learner.stage = stages[-1]
            learner.step(*_taken(stages, rows, which, ends))
            continue
        learner.optimizer.zero_grad()  # one step for the heads of all tasks
        for t in which.unique().tolist():
            learner.stage, own = stages[t], which == t
            x, y = _taken(stages, rows[own], which[own], ends)
            (learner.loss(x, y) * (len(x) / p.size)).backward()
        learner.optimizer.step()
    return total * learner.evaluations(p.size)


def _taken(
    stages: list[Stage], rows: torch.Tensor, which: torch.Tensor, ends: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    if len(stages) == 1:
        return stages[0].x[rows], stages[0].y[rows]
    starts = ends - torch.tensor([len(stage.x) for stage in stages])
    at = rows - starts[which]
    x, y = stages[0].x.new_zeros(len(rows), *stages[0].x.shape[1:]), stages[0].y.new_zeros(len(rows))
    for t in which.unique().tolist():
        own = which == t
        x[own], y[own] = stages[t].x[at[own]], stages[t].y[at[own]]
    return x, y


def _accuracy(model: nn.Module, stage: Stage) -> float:
    with torch.no_grad():
        out = model(stage.x_test)[:, stage.columns]
        return 100 * float((out.argmax(1) == stage.y_test).float().mean())


def _ran(p: Protocol, method: str) -> tuple[str, ...]:
    """The code behind a method's rows: the tasks', the learner's own, and isopath's where it is used."""
    learner = METHODS[method]
    tasks = p.stages.__module__.split(".")[-1]
    own = {f"../../benchmarks/learners/{c.__module__.split('.')[-1]}" for c in learner.__mro__[:-1]}
    return (*sorted(own), f"../../benchmarks/tasks/{tasks}", *(OURS if learner is Kept else ()))


def best(args: Any, name: str, method: str) -> dict[str, Any] | None:
    """The method's settings that are best on held-out images; `None` while they are not all known."""
    p = replace(PROTOCOLS[name], steps=SHORTER.get(name, PROTOCOLS[name].steps))

    def tried(k: int, settings: dict[str, Any]) -> dict[str, Any] | None:
        work = partial(learned, args.data, p, method, settings, 0, p.tasks, True)
        fixed = {**settings, "protocol": p.described}
        return run(f"continual/{name}/grid", f"{method}-{k}", 0, fixed, args, work, _ran(p, method))

    return chosen(GRIDS[name][method], tried, "average")


def main() -> None:
    """Runs what is missing and prints the tables."""
    args, texts = arguments(__doc__ or "", methods=""), []
    columns = ["average", "backward", "forward", "forgetting", "evaluations", "seconds_a_task", "bytes"]
    for name, p in PROTOCOLS.items():
        if args.only and name not in args.only:
            continue
        rows = []
        for method in GRIDS[name]:
            if args.methods and method not in args.methods.split(";"):
                continue
            settings = best(args, name, method)
            if settings is None:
                continue
            for seed in args.seeds:
                work = partial(learned, args.data, p, method, settings, seed, p.tasks, False)
                fixed = {**settings, "protocol": p.described}
                rows.append(run(f"continual/{name}", method, seed, fixed, args, work, _ran(p, method)))
        if any(rows):
            texts.append(f"{name}\n\n" + table(rows, columns, "{:.4g}"))
    text = "\n\n".join(texts)
    if not args.only and not args.methods:
        (RESULTS / "continual.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

"""Continual learning without kept data: ten permutations of MNIST's pixels, one after the other (GPM's protocol).

A multilayer perceptron 784-100-100-10 without biases, one head, five epochs a task, batches of 256, SGD with momentum
0.9 whose rate falls to zero over each task. Every method sees the same batches in the same order and takes the same
steps; each chooses among its settings by the mean accuracy over the first five tasks, on 5,000 held-out training images
with the data order and the weights of seed 0 and trained on the others; the choice is in the results.

R[i, j] is the test accuracy on task j after task i, in percent; with T tasks,
average = mean_j R[T, j], backward transfer = mean_{j<T} R[T, j] - R[j, j] and forgetting = mean_{j<T} max_i R[i, j] -
R[T, j] (Lopez-Paz & Ranzato 2017; Chaudhry et al. 2018).

    python -m benchmarks.continual --data DATA
"""

from __future__ import annotations

import itertools
import time
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness import GROUND, RESULTS, arguments, run, table
from benchmarks.learners import EWC, GPM, Kept, Learner
from isopath.run import data as files

TASKS, EPOCHS, SIZE, HELD = 10, 5, 256, 5000
RAN = (*GROUND, "optim", *(f"geometry/{name}" for name in ("batch", "curvature", "divergence", "factors", "kronecker",
       "memory", "reference")))  # fmt: skip
OWN = {"merge": False, "rank": 128}
METHODS: dict[str, tuple[type[Learner], list[dict[str, Any]]]] = {
    "fine-tuning": (Learner, [{"rate": 0.05}, {"rate": 0.01}]),
    "joint": (Learner, [{"rate": 0.1}, {"rate": 0.05}]),
    "ewc": (EWC, [{"rate": 0.02, "strength": s} for s in (3.0, 30.0, 300.0)]),
    "gpm": (GPM, [{"rate": r, "share": s} for r in (0.05, 0.02) for s in (0.95, 0.99)]),
    "kronecker posterior": (Kept, [{"rate": r, "strength": 1.0, "damping": 1.0, **OWN, "merge": True}
                                   for r in (0.2, 0.1)]),
    "isopath": (Kept, [{"rate": r, "strength": 1.0, "damping": 1.0, **OWN} for r in (0.2, 0.1)]),
}  # fmt: skip


@cache
def mnist(root: Path, train: bool) -> tuple[Tensor, Tensor]:
    """Images `(N, 784)` and labels."""
    found = files.mnist(root, "MNIST", train)
    assert found.labels is not None
    return found.inputs.flatten(1), found.labels


def network(seed: int) -> nn.Module:
    """784-100-100-10 without biases."""
    torch.manual_seed(seed)
    widths = (784, 100, 100, 10)
    layers = [nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def permutations(seed: int) -> list[Tensor]:
    """Orders of the pixels, the first as they are."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.arange(784), *(torch.randperm(784, generator=generator) for _ in range(TASKS - 1))]


def learned(root: Path, method: str, settings: dict[str, Any], seed: int, tasks: int, held: bool) -> dict[str, Any]:
    """One pass over the tasks: the matrix R and what follows from it."""
    (x, y), began = mnist(root, True), time.perf_counter()
    x_test, y_test = (x[-HELD:], y[-HELD:]) if held else mnist(root, False)
    x, y = (x[:-HELD], y[:-HELD]) if held else (x, y)
    orders, model = permutations(seed)[:tasks], network(seed)
    learner = METHODS[method][0](model, settings)
    rows = []
    together = method == "joint"
    for t in [tasks - 1] if together else range(tasks):
        learner.begin()
        here = range(t + 1) if together else [t]
        _train(learner, x, y, [orders[j] for j in here], seed * 100 + t)
        learner.end(x[:, orders[t]], y)
        rows.append([_accuracy(model, x_test[:, order], y_test) for order in orders])
    last = rows[-1]
    found: dict[str, Any] = {"average": sum(last) / tasks, "R": rows, "bytes": learner.bytes}
    if not together:
        found["backward"] = sum(last[j] - rows[j][j] for j in range(tasks - 1)) / max(1, tasks - 1)
        found["forgetting"] = sum(max(r[j] for r in rows[j:]) - last[j] for j in range(tasks - 1)) / max(1, tasks - 1)
    return {**found, "seconds_a_task": (time.perf_counter() - began) / tasks}


def _train(learner: Learner, x: Tensor, y: Tensor, orders: list[Tensor], seed: int) -> None:
    """Five epochs over some tasks, their rows mixed."""
    generator, count = torch.Generator().manual_seed(seed), len(x) * len(orders)
    total, k = EPOCHS * (count // SIZE), 0
    for _ in range(EPOCHS):
        for rows in torch.randperm(count, generator=generator)[: count // SIZE * SIZE].split(SIZE):
            for group in learner.optimizer.param_groups:
                group["lr"] = learner.settings["rate"] * (1 - k / total)
            which, at = rows // len(x), rows % len(x)
            images = x[at]
            images = images[:, orders[0]] if len(orders) == 1 else images.gather(1, torch.stack(orders)[which])
            learner.step(images, y[at])
            k += 1


def _accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return 100 * float((model(x).argmax(1) == y).float().mean())


def best(args: Any, method: str) -> dict[str, Any] | None:
    """The method's settings that are best on held-out images; `None` while they are not all known."""
    grid, scores = METHODS[method][1], []
    for k, settings in enumerate(grid):
        work = partial(learned, args.data, method, settings, 0, TASKS // 2, True)
        row = run("continual/permuted/grid", f"{method}-{k}", 0, settings, args, work, RAN)
        if row is None:
            return None
        scores.append(row["average"])
    return grid[max(range(len(grid)), key=scores.__getitem__)]


def main() -> None:
    """Runs what is missing and prints the table."""
    args, rows = arguments(__doc__ or ""), []
    for method in METHODS:
        settings = best(args, method) if not args.only or method in args.only else None
        if settings is not None:
            for seed in args.seeds:
                work = partial(learned, args.data, method, settings, seed, TASKS, False)
                rows.append(run("continual/permuted", method, seed, settings, args, work, RAN))
    text = table(rows, ["average", "backward", "forgetting", "seconds_a_task", "bytes"], "{:.4g}")
    if not args.only:
        (RESULTS / "continual.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

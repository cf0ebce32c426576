"""MNIST to Fashion-MNIST with 500 kept images: the task of the FIP authors' notebook.

A convolutional network with 20 outputs (1,476,548 parameters: two convolution blocks with batch norm, three linear
layers) is trained on MNIST and then learns Fashion-MNIST as classes 10 to 19. Every method starts from that network and
spends the same gradient evaluations; each chooses its settings from four on held-out training images of seed 0, at the
same budget. The penalty is also run at four weights on every seed, for what it learns at our MNIST accuracy.

    python -m benchmarks.mnist_to_fashion --data DATA
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import isopath as ip
from benchmarks import methods
from benchmarks.harness import RESULTS, arguments, run, table
from isopath.network import Network
from isopath.run import data as files

PROTOCOL = "mnist_to_fashion"
BUDGET, KEPT = 60_000, 500
START_EPOCHS = 3
Row = dict[str, Any]
RATES, SIZES = (1e-3, 3e-3), (32, 64)
OURS: list[dict[str, float]] = [{"tolerance": t, "size": b} for t in (0.02, 0.05) for b in SIZES]
GRID: dict[str, list[dict[str, float]]] = {
    "trace": OURS,
    "joint": [{"rate": r, "size": b} for r in RATES for b in SIZES],
    "penalised": [{"rate": r, "weight": w, "size": 64} for r in RATES for w in (10.0, 100.0)],
    "replay": [{"rate": r, "weight": w, "size": 64} for r in RATES for w in (1.0, 10.0)],
    "backtracking": OURS,
    "fine_tuning": [{"rate": r, "size": b} for r in RATES for b in SIZES],
}
WEIGHTS = (1.0, 10.0, 100.0, 1000.0)  # of the penalty, for its exchange of old against new accuracy


def cnn() -> nn.Module:
    """Two convolution blocks and three linear layers, 20 outputs."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(2304, 600), nn.ReLU(), nn.Linear(600, 120), nn.ReLU(), nn.Linear(120, 20),
    )  # fmt: skip


def start(seed: int, train: methods.Pair) -> nn.Module:
    """The network trained on MNIST, cached."""
    torch.manual_seed(seed)
    steps = START_EPOCHS * len(train[0]) // 128

    def fit(model: nn.Module) -> None:
        optimiser = torch.optim.Adam(model.parameters(), 1e-3)
        methods.fitted(model, optimiser, train, 128, steps, seed, lambda part: max(0.02, 1 - part))

    return methods.cached(f"mnist-cnn-{seed}", cnn(), fit)


class Protocol:
    """Data, with 1,000 MNIST and 5,000 Fashion-MNIST training images held out for choosing settings."""

    def __init__(self, root: Path) -> None:
        def load(name: str, train: bool, shift: int) -> methods.Pair:
            found = files.mnist(root, name, train)
            assert found.labels is not None
            return found.inputs, found.labels + shift

        old, new = load("MNIST", True, 0), load("FashionMNIST", True, 10)
        self.old, self.old_valid = _cut(old, 59_000)
        self.new, self.new_valid = _cut(new, 55_000)
        self.old_test, self.new_test = load("MNIST", False, 0), load("FashionMNIST", False, 10)

    def kept(self, seed: int) -> methods.Pair:
        """The images that every memory has."""
        rows = torch.randperm(len(self.old[0]), generator=torch.Generator().manual_seed(seed))[:KEPT]
        return self.old[0][rows], self.old[1][rows]


def _cut(data: methods.Pair, count: int) -> methods.Pair | Any:
    return (data[0][:count], data[1][:count]), (data[0][count:], data[1][count:])


def trained(name: str, p: Protocol, network: Network, seed: int, settings: Mapping[str, Any]) -> Tensor:
    """A baseline's end point."""
    kept = p.kept(seed)
    runs: dict[str, Callable[[], Tensor]] = {
        "fine_tuning": lambda: methods.fine_tuning(network, p.new, BUDGET, seed, **settings),
        "penalised": lambda: methods.penalised(network, p.new, kept[0], BUDGET, seed, **settings),
        "replay": lambda: methods.replay(network, p.new, kept, BUDGET, seed, **settings),
        "joint": lambda: methods.replay(network, p.new, p.old, BUDGET, seed, **settings),
    }
    return runs[name]()


def traced(name: str, p: Protocol, model: nn.Module, seed: int, settings: Mapping[str, Any]) -> ip.Trajectory:
    """Ours, or gradient descent with backtracking on drift: the same controller, no metric, no corrector."""
    plain = {"direction": ip.NaturalGradient(metric="identity"), "corrector": None} if name == "backtracking" else {}
    return ip.trace(
        model, ip.Reference(p.kept(seed)[0]), ip.Task(*p.new, batch_size=int(settings["size"])),
        tolerance=settings["tolerance"], max_steps=10**6, max_evaluations=BUDGET, seed=seed, keep_waypoints="all",
        **plain,
    )  # fmt: skip


def result(name: str, p: Protocol, seed: int, settings: Mapping[str, Any], held_out: bool) -> dict[str, Any]:
    """A method's end point, scored on test images or on those held out of training."""
    model, path = start(seed, p.old), None
    if name in ("trace", "backtracking"):
        path = traced(name, p, model, seed, settings)
        network, theta, spent = path.network, path.point(), path.evaluations
    else:
        network = Network(model)
        theta = trained(name, p, network, seed, settings)
        spent = network.evaluations
    if held_out:
        old, new = (methods.accuracy(network, theta, data) for data in (p.old_valid, p.new_valid))
        return {"old": old, "new": new, "evaluations": spent}
    found = {
        "start": methods.accuracy(network, network.start, p.old_test),
        "mnist": methods.accuracy(network, theta, p.old_test),
        "fashion": methods.accuracy(network, theta, p.new_test),
        "drift": methods.independent_drift(network, theta, p.kept(seed)[0]),
        "evaluations": spent,
    }
    return found | (judged(p, path, seed) if path is not None else {})


def judged(p: Protocol, path: ip.Trajectory, seed: int) -> dict[str, Any]:
    """Every waypoint's drift in float64, apart from the library's."""
    drifts = [methods.independent_drift(path.network, path.point(step), p.kept(seed)[0]) for step in path.steps]
    return {
        "waypoints": len(path),
        "broken": sum(drift > path.tolerance for drift in drifts),
        "worst_drift": max(drifts),
        "status": path.status,
        "curve": [[row["evaluations"], row["objective"]] for row in path.history if row["accepted"]],
    }


def chosen(name: str, p: Protocol, args: Any) -> dict[str, float]:
    """The grid's best on held-out training images: the mean of both accuracies (fine-tuning: the new one alone)."""
    best, found = -1.0, GRID[name][0]
    for i, settings in enumerate(GRID[name]):
        fixed = {"budget": BUDGET, "kept": KEPT, **settings}
        row = run(f"{PROTOCOL}/grid", f"{name}-{i}", 0, fixed, args, partial(result, name, p, 0, settings, True))
        if row is not None:
            value = row["new"] if name == "fine_tuning" else 0.5 * (row["old"] + row["new"])
            best, found = max((best, found), (value, settings), key=lambda pair: pair[0])
    return found


def exchange(p: Protocol, args: Any, settings: Mapping[str, Any], ours: list[Row]) -> str:
    """What the penalty learns at each weight, and on the line through its points at our MNIST accuracy."""
    rows: dict[int, list[tuple[float, float]]] = {}
    every = []
    for weight in WEIGHTS:
        for seed in args.seeds:
            fixed = {"budget": BUDGET, "kept": KEPT, **settings, "weight": weight}
            changed = {**settings, "weight": weight}
            work = partial(result, "penalised", p, seed, changed, False)
            row = run(f"{PROTOCOL}/exchange", f"penalised-{weight:g}", seed, fixed, args, work)
            if row is not None:
                rows.setdefault(seed, []).append((row["mnist"], row["fashion"]))
                every.append(row)
    lines = [table(every, ["mnist", "fashion", "drift"], "{:.4g}"), ""]
    for row in ours:
        points = sorted(rows.get(row["seed"], []))
        if points:
            at = at_equal(points, row["mnist"])
            said = f"{at:.2f}" if at is not None else f"never there (at most {points[-1][0]:.2f}, {points[-1][1]:.2f})"
            lines.append(f"seed {row['seed']}: trace {row['mnist']:.2f}, {row['fashion']:.2f}; penalty there: {said}  ")
    return "\n".join(lines)


def at_equal(points: list[tuple[float, float]], old: float) -> float | None:
    """New accuracy where the old one is `old`, on the line through `points`; `None` beyond the last of them."""
    for (a, below), (b, above) in pairwise(points):
        if a <= old <= b:
            return above if b == a else below + (above - below) * (old - a) / (b - a)
    return max(new for _, new in points) if old < points[0][0] else None


def main() -> None:
    """Runs what is missing and prints the tables."""
    args = arguments(__doc__ or "")
    p, rows, picks = Protocol(args.data), [], {}
    for name in args.only or GRID:
        settings = picks[name] = chosen(name, p, args)
        for seed in args.seeds:
            fixed = {"budget": BUDGET, "kept": KEPT, **settings}
            row = run(PROTOCOL, name, seed, fixed, args, partial(result, name, p, seed, settings, False))
            rows += [row] if row is not None else []
    text = table(rows, ["start", "mnist", "fashion", "drift", "broken", "evaluations"], "{:.4g}")
    if "penalised" in picks:
        ours = [row for row in rows if row["method"] == "trace"]
        text += "\n\n" + exchange(p, args, picks["penalised"], ours)
    text += "\n\nSettings: " + json.dumps(picks)
    if not args.only:
        (RESULTS / f"{PROTOCOL}.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()

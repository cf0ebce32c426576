"""MNIST to Fashion-MNIST with 500 kept images: the task of the FIP authors' notebook.

A convolutional network with 20 outputs (1,476,548 parameters: two convolution blocks with batch norm, three linear
layers) is trained on MNIST and then learns Fashion-MNIST as classes 10 to 19. Every method starts from that network and
spends the same gradient evaluations; baselines choose their rate and weight on held-out training images of seed 0, at
the same budget.

    python -m benchmarks.mnist_to_fashion --data DATA
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import isopath as ip
from benchmarks import methods
from benchmarks.harness import RESULTS, arguments, run, table
from isopath.network import Network
from isopath.run import data as files

PROTOCOL = "mnist_to_fashion"
BUDGET, KEPT, TOLERANCE, BATCH = 60_000, 500, 0.02, 128
START_EPOCHS = 3
CACHE = Path("runs") / "benchmarks"
GRID: dict[str, list[dict[str, float]]] = {
    "fine_tuning": [{"rate": r} for r in (1e-3, 3e-3)],
    "penalised": [{"rate": 3e-3, "weight": w} for w in (10.0, 1.0)],
    "replay": [{"rate": 1e-3, "weight": w} for w in (1.0, 10.0)],
    "joint": [{"rate": r} for r in (1e-3, 3e-3)],
}


def cnn() -> nn.Module:
    """Two convolution blocks and three linear layers, 20 outputs."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(2304, 600), nn.ReLU(), nn.Linear(600, 120), nn.ReLU(), nn.Linear(120, 20),
    )  # fmt: skip


def start(seed: int, train: methods.Pair) -> nn.Module:
    """The network trained on MNIST, cached."""
    path = CACHE / f"mnist-cnn-{seed}.safetensors"
    torch.manual_seed(seed)
    model = cnn()
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    stream, optimiser = methods.batches(train, 128, seed), torch.optim.Adam(model.parameters(), 1e-3)
    steps = START_EPOCHS * len(train[0]) // 128
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 1e-3 * max(0.02, 1 - step / steps)
        x, y = next(stream)
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), path)
    return model.eval()


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


def baseline(name: str, p: Protocol, network: Network, seed: int, settings: dict[str, float]) -> Tensor:
    """A baseline's end point."""
    kept = p.kept(seed)
    runs: dict[str, Callable[[], Tensor]] = {
        "fine_tuning": lambda: methods.fine_tuning(network, p.new, BUDGET, seed, **settings),
        "penalised": lambda: methods.penalised(network, p.new, kept[0], BUDGET, seed, **settings),
        "replay": lambda: methods.replay(network, p.new, kept, BUDGET, seed, **settings),
        "joint": lambda: methods.replay(network, p.new, p.old, BUDGET, seed, **settings),
    }
    return runs[name]()


def scores(p: Protocol, network: Network, theta: Tensor, seed: int) -> dict[str, float]:
    """Test accuracies and the drift on the kept images."""
    return {
        "start": methods.accuracy(network, network.start, p.old_test),
        "mnist": methods.accuracy(network, theta, p.old_test),
        "fashion": methods.accuracy(network, theta, p.new_test),
        "drift": methods.independent_drift(network, theta, p.kept(seed)[0]),
        "evaluations": network.evaluations,
    }


def chosen(name: str, p: Protocol, args: Any) -> dict[str, float]:
    """The grid's best on held-out training images: the mean of both accuracies (fine-tuning: the new one alone)."""
    network = Network(start(0, p.old))
    best, found = -1.0, GRID[name][0]
    for i, settings in enumerate(GRID[name]):

        def work(settings: dict[str, float] = settings) -> dict[str, Any]:
            theta = baseline(name, p, network, 0, settings)
            return {
                "old": methods.accuracy(network, theta, p.old_valid),
                "new": methods.accuracy(network, theta, p.new_valid),
            }

        row = run(f"{PROTOCOL}/grid", f"{name}-{i}", 0, settings, args, work)
        if row is not None:
            value = row["new"] if name == "fine_tuning" else 0.5 * (row["old"] + row["new"])
            best, found = max((best, found), (value, settings), key=lambda pair: pair[0])
    return found


def traced(name: str, p: Protocol, seed: int) -> dict[str, Any]:
    """Ours, and gradient descent with backtracking on drift: the same controller, no metric, no corrector."""
    model, kept = start(seed, p.old), p.kept(seed)[0]
    plain = {"direction": ip.NaturalGradient(metric="identity"), "corrector": None} if name == "backtracking" else {}
    path = ip.trace(
        model, ip.Reference(kept), ip.Task(*p.new, batch_size=BATCH), tolerance=TOLERANCE, max_steps=10**6,
        max_evaluations=BUDGET, seed=seed, keep_waypoints="all", **plain,
    )  # fmt: skip
    network = path.network
    drifts = [methods.independent_drift(network, path.point(step), kept) for step in path.steps]
    network.evaluations = path.evaluations
    return {
        **scores(p, network, path.point(), seed),
        "evaluations": path.evaluations,
        "tolerance": TOLERANCE,
        "waypoints": len(path),
        "broken": sum(drift > TOLERANCE for drift in drifts),
        "worst_drift": max(drifts),
        "status": path.status,
        "curve": [
            [row["evaluations"], row["objective"]] for row in path.history if row["accepted"]
        ],
    }


def main() -> None:
    """Runs what is missing and prints the table."""
    args = arguments(__doc__ or "")
    p, rows = Protocol(args.data), []
    names = args.only or ["trace", "joint", "penalised", "backtracking", "replay", "fine_tuning"]
    for name in names:
        settings = {} if name in ("trace", "backtracking") else chosen(name, p, args)
        for seed in args.seeds:

            def work(name: str = name, seed: int = seed, settings: dict[str, float] = settings) -> dict[str, Any]:
                if name in ("trace", "backtracking"):
                    return traced(name, p, seed)
                network = Network(start(seed, p.old))
                theta = baseline(name, p, network, seed, settings)
                spent = network.evaluations
                return {**scores(p, network, theta, seed), "evaluations": spent}

            held = {"tolerance": TOLERANCE, "batch": BATCH} if name in ("trace", "backtracking") else {"batch": 128}
            fixed = {"budget": BUDGET, "kept": KEPT, **held, **settings}
            rows.append(run(PROTOCOL, name, seed, fixed, args, work))
    text = table(rows, ["start", "mnist", "fashion", "drift", "broken", "evaluations"], "{:.4g}")
    (RESULTS / f"{PROTOCOL}.md").write_text(text + "\n")
    print(text)
    print(json.dumps({name: chosen(name, p, args) for name in GRID if name in names}))


if __name__ == "__main__":
    main()

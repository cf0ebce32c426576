"""An MLP 784-300-100-10 trained on MNIST learns MNIST turned by 90 degrees, with 2,048 and with 128 kept images.

Held-out MNIST accuracy at the first waypoint whose rotated test accuracy is at least 85 and 90 %; `--only identity`
runs the same tracer with a flat metric, no corrector and no bound on drift. Then, at equal tolerance and cost, how far
the rotated test loss falls: the trace against gradient descent with backtracking on drift (the flat one, held to the
tolerance).

    python -m benchmarks.rotated_mnist --data DATA
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import isopath as ip
from benchmarks import methods
from benchmarks.harness import RESULTS, arguments, run, table
from isopath.network import Network
from isopath.run import data as files
from isopath.trace import Backtracking

SETTINGS: dict[int, dict[str, float]] = {2048: {"tolerance": 0.007}, 128: {"tolerance": 0.06}}
BATCH, STRIDE, STEPS, COST = 512, 4, 120, 150_000


def mlp() -> nn.Module:
    """784-300-100-10 with ReLU."""
    layers = [nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)]
    return nn.Sequential(nn.Flatten(), *layers)


def start(seed: int, train: methods.Pair) -> nn.Module:
    """Trained on MNIST with Adam for six epochs, cached."""
    torch.manual_seed(seed)

    def fit(model: nn.Module) -> None:
        network = Network(model)
        network.copy_to(methods.fine_tuning(network, train, 6 * len(train[0]), seed, 1e-3), model)

    return methods.cached(f"mnist-mlp-{seed}", mlp(), fit)


def turned(data: methods.Pair) -> methods.Pair:
    """The images turned by 90 degrees."""
    return torch.rot90(data[0], 1, (2, 3)).contiguous(), data[1]


def crossings(
    model: nn.Module, kept: torch.Tensor, train: methods.Pair, test: methods.Pair, seed: int, flat: bool
) -> dict[str, Any]:
    """Held-out accuracy on the old task where the new one first reaches 85 and 90 %."""
    settings = SETTINGS[len(kept)]
    plain = {"direction": ip.NaturalGradient(metric="identity"), "corrector": None} if flat else {}
    tolerance = 1.0 if flat else settings["tolerance"]
    states = ip.steps(
        model, ip.Reference(kept), ip.Task(*turned(train), batch_size=BATCH), tolerance, STEPS, seed,
        controller=Backtracking(stride=1 if flat else STRIDE), **plain,
    )  # fmt: skip
    found: dict[str, Any] = {"tolerance": tolerance, "broken": 0}
    network = None
    for state in states:
        if not state.accepted or not state.step:
            continue
        network = state.network
        assert network is not None
        spent = network.evaluations
        new = methods.accuracy(network, state.theta, turned(test))
        old = methods.accuracy(network, state.theta, test)
        network.evaluations = spent
        found["broken"] += methods.independent_drift(network, state.theta, kept) > tolerance
        for target in (85, 90):
            if new >= target and f"old_at_{target}" not in found:
                found |= {f"old_at_{target}": old, f"drift_at_{target}": state.drift, f"cost_at_{target}": spent}
        if "old_at_90" in found:
            break
    return found


def gain(model: nn.Module, kept: torch.Tensor, train: methods.Pair, test: methods.Pair, seed: int, flat: bool) -> Any:
    """How far the new test loss falls at equal tolerance and cost; `flat` is descent with backtracking on drift."""
    plain = {"direction": ip.NaturalGradient(metric="identity"), "corrector": None} if flat else {}
    path = ip.trace(
        model, ip.Reference(kept), ip.Task(*turned(train), batch_size=BATCH), SETTINGS[2048]["tolerance"], 10**6, seed,
        max_evaluations=COST, keep_waypoints="all", **plain,
    )  # fmt: skip
    task = ip.Task(*turned(test), batch_size=1000)
    before, after = ip.evaluate(path.model(0), task), ip.evaluate(path.model(), task)
    drifts = [methods.independent_drift(path.network, path.point(step), kept) for step in path.steps]
    return {
        "gain": before.loss - after.loss,
        "loss_before": before.loss,
        "loss_after": after.loss,
        "evaluations": path.evaluations,
        "waypoints": len(path),
        "broken": sum(drift > path.tolerance for drift in drifts),
        "status": path.status,
    }


def main() -> None:
    """Runs what is missing and prints the tables."""
    args, rows = arguments(__doc__ or ""), []
    train, test = (files.mnist(args.data, "MNIST", t) for t in (True, False))
    pairs = [(d.inputs, d.labels) for d in (train, test)]
    for count, settings in SETTINGS.items():
        for name in args.only or ["trace"]:
            for seed in args.seeds:

                def work(name: str = name, seed: int = seed, count: int = count) -> dict[str, Any]:
                    rows = torch.randperm(len(pairs[0][0]), generator=torch.Generator().manual_seed(seed))[:count]
                    model = start(seed, pairs[0])  # type: ignore[arg-type]
                    network = Network(model)
                    scored = {"start": methods.accuracy(network, network.start, pairs[1])}  # type: ignore[arg-type]
                    flat = name == "identity"
                    return scored | crossings(model, pairs[0][0][rows], *pairs, seed, flat)  # type: ignore[arg-type]

                fixed = {**settings, "kept": count, "batch": BATCH, "stride": STRIDE, "steps": STEPS}
                rows.append(run("rotated_mnist", f"{name}-{count}", seed, fixed, args, work))
    columns = ["start", "old_at_85", "old_at_90", "drift_at_85", "drift_at_90", "cost_at_90", "broken"]
    text = table(rows, columns, "{:.4g}")
    (RESULTS / "rotated_mnist.md").write_text(text + "\n")
    print(text)
    gains = []
    for name in ("trace", "backtracking"):
        for seed in args.seeds:

            def compare(name: str = name, seed: int = seed) -> dict[str, Any]:
                rows = torch.randperm(len(pairs[0][0]), generator=torch.Generator().manual_seed(seed))[:2048]
                model = start(seed, pairs[0])  # type: ignore[arg-type]
                return gain(model, pairs[0][0][rows], *pairs, seed, name == "backtracking")  # type: ignore[arg-type]

            fixed = {"tolerance": SETTINGS[2048]["tolerance"], "kept": 2048, "batch": BATCH, "cost": COST}
            gains.append(run("equal_cost", name, seed, fixed, args, compare))
    text = table(gains, ["gain", "loss_before", "loss_after", "evaluations", "broken"], "{:.4g}")
    (RESULTS / "equal_cost.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
